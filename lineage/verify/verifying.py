"""Does the ledger still say what was recorded? Events, rows, schema and bytes, each against what promised them.

What is found, by kind of problem:

- ``file_damaged``: the ledger or snapshot cannot be read, is gone, or has other bytes than its seal says;
- ``seal_changed``, ``seal_missing``: the seal itself is not as it was written, or is not there beside the snapshot;
- ``schema_changed``: an object of any kind (table, view, macro, trigger, type, sequence, index, schema, comment) is not
  of gradtrail's schema, or differs from it;
- ``event_changed``, ``event_missing``: an event does not hash to what it says, does not continue the one before, or is
  gone. The last events can vanish without a trace in the chain; the seal shows that up to the event it holds;
- ``row_changed``, ``row_dropped``, ``row_added``: a row differs from what its event promised, named by table and key;
- ``commitment_changed``: the promises themselves no longer give the root in their event;
- ``erasure_unfinished``: an erasure was recorded, but a kill or a fault kept it from removing every trace;
- ``signature_bad``, ``signature_missing``: an audit's signature does not hold, or is demanded and not there.

A row that an event says was erased is no problem but a note. So is a writer that was killed half-way: it leaves a mark
beside the ledger, and until the next publication the bytes of the file cannot be held against the seal. So is an event
that is dated before the one it follows: a clock was set back, or one of the times is not true.

The snapshot is checked as the ledger is, rows against events, wherever it is not byte for byte the ledger.

Someone who rewrites rows, commitments, all later events and the seal is not found, nor is someone who removes the last
events together with snapshot and seal, unless a copy of a seal that was kept elsewhere is given.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import duckdb

from gradtrail.digests import sha256_file
from gradtrail.errors import LedgerError
from gradtrail.lineage.chain.row_check import Problem
from gradtrail.lineage.connections import first_line, is_damage, open_snapshot, shared_file
from gradtrail.lineage.ledger.seal import Seal, is_continued, publications_held, read_seal, read_seal_file, seal_path
from gradtrail.lineage.ledger.writing import Ledger
from gradtrail.lineage.verify.content import Findings, checked_content

__all__ = ["Problem", "VerificationReport", "verify_ledger"]

_OF_THE_LEDGER = frozenset({"erasure_unfinished"})
"""Kinds of problems that a snapshot may have shown rightly when it was published."""


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


def verify_ledger(ledger: Ledger, public_key: str = "", seals: Sequence[Path] = ()) -> VerificationReport:
    """Check everything again; reads only.

    Args:
        ledger: the ledger to check.
        public_key: 64 hexadecimal digits; every audit must be signed by this key then.
        seals: copies of earlier seals that were kept elsewhere; the ledger must continue each.

    Raises:
        NotFoundError: there is neither a ledger nor anything that was published of it; or no such copy of a seal.
        LedgerError: another process holds the ledger, or a newer gradtrail wrote it.
        UsageError: what should be a copy of a seal is none.
    """
    kept = [(path, read_seal_file(path)) for path in seals]
    found = Findings()
    with _checked_files(ledger, found) as (files, snapshot):
        if files.ledger_sha256 is not None or not found.problems:
            _check_ledger(ledger, found, public_key, files, kept)
        if snapshot is not None and files.seal is not None:
            _check_snapshot(snapshot, ledger, found, files.seal)
    found.notes += [
        f"{count:,} {'row' if count == 1 else 'rows'} of {name} erased by event {event}."
        for (name, event), count in sorted(found.erased.items(), key=lambda each: (each[0][1], each[0][0]))
    ]
    return VerificationReport(
        found.checked,
        tuple(found.problems),
        found.head[0],
        found.head[1],
        files.bytes_sealed,
        found.omitted,
        tuple(found.notes),
    )


@dataclass(frozen=True)
class _Files:
    """The seal, and the digest of the ledger file; None where one is not there."""

    seal: Seal | None
    ledger_sha256: str | None

    @property
    def bytes_sealed(self) -> bool:
        return self.seal is not None and self.ledger_sha256 == self.seal.ledger_sha256


@contextmanager
def _checked_files(ledger: Ledger, found: Findings) -> Iterator[tuple[_Files, duckdb.DuckDBPyConnection | None]]:
    """Check the bytes; gives a connection on the snapshot where its rows have to be checked, too.

    They have not where it is byte for byte the ledger, whose rows are.
    """
    snapshot = ledger.paths.snapshot
    opened = None
    try:
        with ledger.exclusive(), publications_held(snapshot):
            files = _check_files(ledger, found)
            if files.seal is not None and _is_as_sealed(snapshot, files.seal, found):
                logs = _log_of(ledger.paths.database).exists() or _log_of(snapshot).exists()
                if logs or files.ledger_sha256 != files.seal.snapshot_sha256:
                    # Opened while nobody publishes: from here on this is the file that was hashed.
                    opened = _opened(snapshot, found)
        yield files, opened
    finally:
        if opened is not None:
            opened.close()


def _check_files(ledger: Ledger, found: Findings) -> _Files:
    database, snapshot = ledger.paths.database, ledger.paths.snapshot
    seal = None
    digest = None
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
    return _Files(seal, digest)


def _is_as_sealed(snapshot: Path, seal: Seal, found: Findings) -> bool:
    found.checked["sealed files"] = 2
    if not snapshot.is_file():
        found.add("file_damaged", snapshot, "the snapshot is gone, but its seal is there")
        return False
    if _log_of(snapshot).exists():
        found.add("file_damaged", snapshot, "a log of changes lies beside the snapshot, which nobody may write")
    if (digest := sha256_file(snapshot)) != seal.snapshot_sha256:
        found.add(
            "file_damaged",
            snapshot,
            f"the snapshot was changed after it was published: sha256 {digest}, sealed {seal.snapshot_sha256}",
        )
        return False
    return True


def _opened(snapshot: Path, found: Findings) -> duckdb.DuckDBPyConnection | None:
    try:
        return open_snapshot(snapshot)
    except LedgerError as error:
        found.add("file_damaged", snapshot, error.what)
        return None


def _check_ledger(
    ledger: Ledger, found: Findings, public_key: str, files: _Files, kept: Sequence[tuple[Path, Seal]]
) -> None:
    database = ledger.paths.database
    try:
        with (
            ledger.read_unmigrated() as connection,
            checked_content(connection, found, public_key) as clean,
        ):
            if files.seal is not None:
                _check_against_seal(clean, found, ledger, files.seal, bytes_sealed=files.bytes_sealed)
            for path, seal in kept:
                _check_against_copy(clean, found, path, seal, files)
    except duckdb.Error as error:
        found.add("file_damaged", database, f"the ledger file cannot be read: {first_line(error)}")
    except LedgerError as error:
        if not is_damage(error):
            raise
        found.add("file_damaged", database, error.what)


def _check_snapshot(connection: duckdb.DuckDBPyConnection, ledger: Ledger, found: Findings, seal: Seal) -> None:
    """The rows of the snapshot against its own events, and its last event against the seal, and so the ledger."""
    inside = Findings()
    snapshot = ledger.paths.snapshot
    try:
        with checked_content(connection, inside, ""):
            if inside.head != (seal.head_sequence, seal.head_hash):
                message = f"its last event, {inside.head[0]}, is not the one in its seal, {seal.head_sequence}"
                inside.add("event_changed", "event", message)
    except duckdb.Error as error:
        inside.add("file_damaged", snapshot, f"the snapshot cannot be read: {first_line(error)}")
    except LedgerError as error:
        inside.add("file_damaged", snapshot, error.what)
    found.checked["rows of the snapshot"] = inside.checked["rows"]
    found.omitted += inside.omitted
    for problem in inside.problems:
        if problem.kind not in _OF_THE_LEDGER:
            found.add(problem.kind, f"snapshot {snapshot.name}: {problem.subject}", problem.message)


def _check_against_copy(
    connection: duckdb.DuckDBPyConnection, found: Findings, path: Path, seal: Seal, files: _Files
) -> None:
    found.checked["seals kept elsewhere"] = found.checked.get("seals kept elsewhere", 0) + 1
    said = f"the seal of {seal.published_at} in {path} holds event {seal.head_sequence}"
    if found.head[0] < seal.head_sequence:
        gone = f"events {found.head[0] + 1} to {seal.head_sequence}"
        found.add("event_missing", gone, f"{said}, the ledger ends at event {found.head[0]}")
    elif not is_continued(connection, seal):
        found.add("event_changed", f"event {seal.head_sequence}", f"{said}, which is another: history was rewritten")
    elif found.head[0] == seal.head_sequence and files.ledger_sha256 != seal.ledger_sha256:
        message = f"{said}, the last one of the ledger, and other bytes of its file: bytes were changed"
        found.add("file_damaged", "ledger", message)


def _log_of(database: Path) -> Path:
    return database.with_name(database.name + ".wal")


def _check_against_seal(
    connection: duckdb.DuckDBPyConnection, found: Findings, ledger: Ledger, seal: Seal, *, bytes_sealed: bool
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
