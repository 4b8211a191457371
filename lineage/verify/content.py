"""What the tables of a ledger or snapshot hold, against the chain of events in it. Nothing the file defines is used.

The rows are read from an empty database beside the file, by the full path of each table. Only a table that is defined
as gradtrail defines it is read, so that no view stands in for one and no macro answers for a function.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import chain

import duckdb

from gradtrail.durations import in_words
from gradtrail.lineage.chain.integrity import FIRST_PREVIOUS_HASH, event_hash
from gradtrail.lineage.chain.row_check import UNREADABLE, Erased, Problem, Promise, check_rows, erased_positions
from gradtrail.lineage.engines import LEDGER
from gradtrail.lineage.erasure.erasures import unfinished_erasures
from gradtrail.lineage.ledger.definitions import differences, found_definitions, recorded_version
from gradtrail.lineage.read.clocks import clock_behind_seconds, clock_jumps
from gradtrail.lineage.schema.statements import statement
from gradtrail.lineage.schema.tables import tables_at
from gradtrail.lineage.verify.signatures import check_signatures

LONGEST_LIST = 1000
_CHAIN = ("event", "row_commitment")


class Findings:
    """What was counted and found so far; the first 1,000 problems are kept."""

    def __init__(self) -> None:
        self.checked = {"events": 0, "rows": 0, "sealed files": 0}
        self.problems: list[Problem] = []
        self.omitted = 0
        self.head = (0, FIRST_PREVIOUS_HASH)
        self.erased: Counter[tuple[str, int]] = Counter()
        self.notes: list[str] = []

    def add(self, kind: str, subject: object, message: str) -> None:
        """Add a problem."""
        self.note(Problem(kind, str(subject), message))

    def note(self, problem: Problem) -> None:
        """The same."""
        if len(self.problems) < LONGEST_LIST:
            self.problems.append(problem)
        else:
            self.omitted += 1


@contextmanager
def checked_content(
    connection: duckdb.DuckDBPyConnection, found: Findings, public_key: str
) -> Iterator[duckdb.DuckDBPyConnection]:
    """Check definitions, events, rows and signatures; gives a connection that sees tables of known definition alone.

    Raises:
        LedgerError: a newer gradtrail wrote the file, or it is a database of something else.
    """
    defined = found_definitions(connection)
    version = recorded_version(connection, defined)
    changed = differences(defined, version)
    for name, message in changed.items():
        found.add("schema_changed", name, message)
    tables = tables_at(version)
    names = {name for kind, name in defined if kind == "table"}.intersection((*tables, *_CHAIN)) - changed.keys()
    with _apart(connection, names) as clean:
        if names.issuperset(_CHAIN):
            promises = _check_events(clean, found)
            _note_times(clean, found)
            erasures = erased_positions(clean) if "erased_row" in names else {}
            for name, table in tables.items():
                if name in names:
                    for outcome in check_rows(clean, table, promises.get(name, {}), erasures):
                        if outcome is None:
                            found.checked["rows"] += 1
                        elif isinstance(outcome, Erased):
                            found.erased[name, outcome.erasing_event] += 1
                        else:
                            found.note(outcome)
            if names.issuperset({*tables, "audit_signature", "erasure"}):
                for problem in chain(unfinished_erasures(clean), check_signatures(clean, public_key)):
                    found.note(problem)
        yield clean


@contextmanager
def _apart(connection: duckdb.DuckDBPyConnection, names: Collection[str]) -> Iterator[duckdb.DuckDBPyConnection]:
    """A connection on the empty database beside the file, with views of its own of these tables alone."""
    clean = connection.cursor()
    try:
        clean.execute("SET TimeZone = 'UTC'")
        template = "CREATE TEMP VIEW $table AS SELECT * FROM $ledger.main.$table"
        for name in sorted(names):
            clean.execute(statement(template, table=name, ledger=LEDGER))
        yield clean
    finally:
        clean.close()


def _note_times(connection: duckdb.DuckDBPyConnection, found: Findings) -> None:
    """Name events that are dated before the one they follow, and the newest after now: a clock was wrong."""
    jumps = clock_jumps(connection)
    found.notes += [
        f"Event {each.sequence} is dated {each.recorded_at:%Y-%m-%d %H:%M:%S} UTC, {in_words(each.seconds)} before the "
        "event that it follows: a clock was set back between them, or one of the times is not true."
        for each in jumps[:LONGEST_LIST]
    ]
    if len(jumps) > LONGEST_LIST:
        found.notes.append(f"{len(jumps) - LONGEST_LIST:,} more events are dated before the one they follow.")
    if (behind := clock_behind_seconds(connection, datetime.now(UTC))) > 0:
        found.notes.append(
            f"The newest time of the ledger lies {in_words(behind)} after this machine's clock: one of the clocks that "
            "wrote it was, or this one is, wrong."
        )


def _check_events(connection: duckdb.DuckDBPyConnection, found: Findings) -> dict[str, dict[int, Promise]]:
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
