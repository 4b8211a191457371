"""Does the ledger still say what was recorded? Events, rows, schema and bytes, each against what promised them.

What is found, by kind of problem:

- ``file_damaged``: the ledger or snapshot cannot be read, is gone, or has other bytes than its seal says;
- ``seal_changed``, ``seal_missing``: the seal itself is not as it was written, or is not there beside the snapshot;
- ``schema_changed``: a table, view, trigger or macro differs from the schema files of gradtrail;
- ``event_changed``, ``event_missing``: an event does not hash to what it says, does not continue the one before, or is
  gone. The last events can vanish without a trace in the chain; the seal shows that up to the event it holds;
- ``row_changed``, ``row_dropped``, ``row_added``: a row differs from what its event promised, named by table and key;
- ``commitment_changed``: the promises themselves no longer give the root in their event;
- ``erasure_unfinished``: an erasure was recorded, but a kill or a fault kept it from removing every trace;
- ``signature_bad``, ``signature_missing``: an audit's signature does not hold, or is demanded and not there.

A row that an event says was erased is no problem but a note. So is a writer that was killed half-way: it leaves a mark
beside the ledger, and until the next publication the bytes of the file cannot be held against the seal.

Someone who rewrites rows, commitments, all later events and the seal is not found, nor is someone who removes the last
events together with snapshot and seal: keep copies of the seal elsewhere.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import duckdb

from gradtrail.digests import sha256_file
from gradtrail.errors import LedgerError
from gradtrail.lineage.chain.integrity import FIRST_PREVIOUS_HASH, event_hash
from gradtrail.lineage.chain.row_check import UNREADABLE, Erased, Problem, Promise, check_rows, erased_positions
from gradtrail.lineage.connections import first_line, is_damage, shared_file
from gradtrail.lineage.erasure.erasures import unfinished_erasures
from gradtrail.lineage.ledger.migrations import schema_differences, version_of
from gradtrail.lineage.ledger.seal import Seal, is_continued, publications_held, read_seal, seal_path
from gradtrail.lineage.ledger.writing import Ledger
from gradtrail.lineage.schema.tables import tables_at
from gradtrail.lineage.verify.signatures import check_signatures

__all__ = ["Problem", "VerificationReport", "verify_ledger"]

LONGEST_LIST = 1000


@dataclass(frozen=True)
class VerificationReport:
    """What was checked and what was wrong, the first bad thing first.

    `checked` counts by what was counted. `bytes_sealed` says that the ledger file is, byte for byte, the one that was
    published last. `omitted` counts problems beyond the first 1,000. `notes` are sentences about what is no problem
    but must be known: what was erased by which event.
    """

    checked: Mapping[str, int]
    problems: tuple[Problem, ...]
    head_sequence: int
    head_hash: str
    bytes_sealed: bool
    omitted: int = 0
    notes: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether nothing was wrong."""
        return not self.problems


class _Findings:
    def __init__(self) -> None:
        self.checked = {"events": 0, "rows": 0, "sealed files": 0}
        self.problems: list[Problem] = []
        self.omitted = 0
        self.head = (0, FIRST_PREVIOUS_HASH)
        self.erased: Counter[tuple[str, int]] = Counter()
        self.notes: list[str] = []

    def add(self, kind: str, subject: object, message: str) -> None:
        self.note(Problem(kind, str(subject), message))

    def note(self, problem: Problem) -> None:
        if len(self.problems) < LONGEST_LIST:
            self.problems.append(problem)
        else:
            self.omitted += 1


def verify_ledger(ledger: Ledger, public_key: str = "") -> VerificationReport:
    """Check everything again; reads only.

    Args:
        ledger: the ledger to check.
        public_key: 64 hexadecimal digits; every audit must be signed by this key then.

    Raises:
        NotFoundError: there is neither a ledger nor anything that was published of it.
        LedgerError: another process holds the ledger, or a newer gradtrail wrote it.
    """
    found = _Findings()
    database = ledger.paths.database
    seal, digest = _check_files(ledger, found)
    bytes_sealed = seal is not None and digest == seal.ledger_sha256
    if digest is not None or not found.problems:
        try:
            with ledger.read_unmigrated() as connection:
                _check_content(connection, found, public_key)
                if seal is not None:
                    _check_against_seal(connection, found, ledger, seal, bytes_sealed=bytes_sealed)
        except duckdb.Error as error:
            found.add("file_damaged", database, f"the ledger file cannot be read: {first_line(error)}")
        except LedgerError as error:
            if not is_damage(error):
                raise
            found.add("file_damaged", database, error.what)
    found.notes += [
        f"{count:,} {'row' if count == 1 else 'rows'} of {name} erased by event {event}."
        for (name, event), count in sorted(found.erased.items(), key=lambda each: (each[0][1], each[0][0]))
    ]
    return VerificationReport(
        found.checked,
        tuple(found.problems),
        found.head[0],
        found.head[1],
        bytes_sealed,
        found.omitted,
        tuple(found.notes),
    )


def _check_files(ledger: Ledger, found: _Findings) -> tuple[Seal | None, str | None]:
    database, snapshot = ledger.paths.database, ledger.paths.snapshot
    seal = None
    digest = None
    with ledger.exclusive(), publications_held(snapshot):
        was_published = snapshot.is_file()  # asked first: somebody may be publishing for the first time
        try:
            seal = read_seal(snapshot)
            if seal is None and was_published:
                found.add(
                    "seal_missing",
                    seal_path(snapshot),
                    "the snapshot is there, but its seal is gone: whether events or bytes were removed cannot be told",
                )
        except LedgerError as error:
            found.add("seal_changed", seal_path(snapshot), error.what)
        if database.is_file():
            with shared_file(database, patience_seconds=ledger.patience_seconds):
                digest = sha256_file(database)
        if digest is None and (seal is not None or found.problems):
            beside = "snapshot" if was_published else "seal"
            found.add("file_damaged", database, f"the ledger file is gone, but its {beside} is there")
        if seal is not None:
            found.checked["sealed files"] = 2
            _check_snapshot(snapshot, seal, found)
    return seal, digest


def _check_snapshot(snapshot: Path, seal: Seal, found: _Findings) -> None:
    if not snapshot.is_file():
        found.add("file_damaged", snapshot, "the snapshot is gone, but its seal is there")
    elif (digest := sha256_file(snapshot)) != seal.snapshot_sha256:
        found.add(
            "file_damaged",
            snapshot,
            f"the snapshot was changed after it was published: sha256 {digest}, sealed {seal.snapshot_sha256}",
        )


def _check_content(connection: duckdb.DuckDBPyConnection, found: _Findings, public_key: str) -> None:
    version = version_of(connection)
    tables = tables_at(version)
    changed = schema_differences(connection, version)
    for name, message in changed.items():
        found.add("schema_changed", name, message)
    if changed.keys().isdisjoint({"event", "row_commitment"}):
        promises = _check_events(connection, found)
        names = {row[0] for row in connection.execute("SELECT table_name FROM duckdb_tables()").fetchall()}
        erasures = {} if "erased_row" in changed else erased_positions(connection)
        for name, table in tables.items():
            if name in names - changed.keys():
                for outcome in check_rows(connection, table, promises.get(name, {}), erasures):
                    if outcome is None:
                        found.checked["rows"] += 1
                    elif isinstance(outcome, Erased):
                        found.erased[name, outcome.erasing_event] += 1
                    else:
                        found.note(outcome)
        if names.issuperset({"audit_signature", "erasure"}) and changed.keys().isdisjoint(tables):
            for problem in chain(unfinished_erasures(connection), check_signatures(connection, public_key)):
                found.note(problem)


def _check_events(connection: duckdb.DuckDBPyConnection, found: _Findings) -> dict[str, dict[int, Promise]]:
    query = """
        SELECT sequence, recorded_at, kind, subject, payload, previous_hash, event_hash
        FROM event ORDER BY sequence"""
    promises: dict[str, dict[int, Promise]] = {}
    expected, previous = 1, FIRST_PREVIOUS_HASH
    for sequence, recorded_at, kind, subject, payload, previous_hash, digest in connection.execute(query).fetchall():
        found.checked["events"] += 1
        named = f"event {sequence}"
        if sequence != expected:
            gone = f"event {expected}" if sequence == expected + 1 else f"events {expected} to {sequence - 1}"
            found.add("event_missing", gone, f"{named} follows event {expected - 1}")
        computed = event_hash(
            sequence=sequence,
            recorded_at=recorded_at,
            kind=kind,
            subject=subject,
            payload=payload,
            previous_hash=previous_hash,
        )
        if computed != digest:
            found.add("event_changed", named, f"its content hashes to {computed}, it says {digest}")
        elif sequence == expected and previous_hash != previous:
            found.add("event_changed", named, f"it continues {previous_hash}, the event before it is {previous}")
        for name, promise in _promises(payload):
            promises.setdefault(name, {})[sequence] = promise
        expected, previous = sequence + 1, digest
        found.head = (sequence, digest)
    return promises


def _promises(payload: str) -> Iterator[tuple[str, Promise]]:
    # A payload that was changed is reported by its hash; what cannot be parsed then promises nothing.
    try:
        promised = json.loads(payload)["rows"]
        parsed = [(name, Promise(int(each["count"]), str(each["root"]))) for name, each in promised.items()]
    except UNREADABLE:
        return
    yield from parsed


def _check_against_seal(
    connection: duckdb.DuckDBPyConnection, found: _Findings, ledger: Ledger, seal: Seal, *, bytes_sealed: bool
) -> None:
    sequence = found.head[0]
    if sequence < seal.head_sequence:
        found.add(
            "event_missing",
            f"events {sequence + 1} to {seal.head_sequence}",
            f"the seal of {seal.published_at} holds event {seal.head_sequence}, the ledger ends at event {sequence}",
        )
        return
    if not is_continued(connection, seal):
        found.add(
            "event_changed",
            f"event {seal.head_sequence}",
            f"it is not the event that the seal of {seal.published_at} holds: history was rewritten",
        )
    elif sequence == seal.head_sequence and not bytes_sealed and ledger.interrupted_writers():
        found.notes.append(
            f"A writer of {ledger.paths.database} was killed half-way, so its bytes cannot be held against the seal of "
            f"{seal.published_at}; every event and row was checked. The next publication seals it again."
        )
    elif sequence == seal.head_sequence and not bytes_sealed:
        found.add(
            "file_damaged",
            ledger.paths.database,
            f"the ledger file has other bytes than the seal of {seal.published_at} says, though no event was recorded "
            "since: bytes were changed",
        )
