"""Rows against what their events promised, streamed: every digest is computed again, nothing is held but one batch."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from heapq import merge
from itertools import groupby
from typing import Any

import duckdb
import pyarrow as pa

from gradtrail.lineage.chain.integrity import MerkleTree, key_text, row_digests, row_keys
from gradtrail.lineage.engines import LEDGER, second
from gradtrail.lineage.schema.statements import statement
from gradtrail.lineage.schema.tables import Table

_BATCH_ROWS = 10_000
UNREADABLE = (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError)
"""What reading JSON raises that somebody else wrote."""


@dataclass(frozen=True)
class Problem:
    """One thing that is not as it was recorded. `subject` names it: a table and key, an event, or a file."""

    kind: str
    subject: str
    message: str


@dataclass(frozen=True)
class Promise:
    """What an event says about its rows in one table."""

    count: int
    root: str


@dataclass(frozen=True)
class Erased:
    """A row that is gone, and the event that says it was erased."""

    erasing_event: int


@dataclass(frozen=True, order=True)
class _Entry:
    sequence: int
    order: tuple[tuple[int, Any], ...]
    is_row: bool
    key: str = field(compare=False)
    digest: bytes = field(compare=False)
    position: int = field(compare=False, default=-1)


Erasures = Mapping[tuple[int, str], Mapping[int, int]]


def erased_positions(connection: duckdb.DuckDBPyConnection) -> Erasures:
    """The erasing event by position, of every erased row, by recording event and table."""
    if not connection.execute("SELECT 1 FROM system.main.duckdb_tables() WHERE table_name = 'erased_row'").fetchall():
        return {}
    found: dict[tuple[int, str], dict[int, int]] = {}
    query = "SELECT erased_event, table_name, position, event_sequence FROM erased_row"
    for recording, name, position, erasing in connection.execute(query).fetchall():
        found.setdefault((recording, name), {})[position] = erasing
    return found


def check_rows(
    connection: duckdb.DuckDBPyConnection,
    table: Table,
    promises: Mapping[int, Promise],
    erasures: Erasures,
) -> Iterator[Problem | Erased | None]:
    """Check one table; yields None for every row found, Erased for every row erased, each problem, by event and key.

    Args:
        connection: on the ledger, or on an empty database beside it, where no name of the file can stand for another.
        table: the table to walk, which the caller knows to be one.
        promises: by event sequence, what that event says about this table.
        erasures: see `erased_positions`; the rows it rests on are checked with their own table.
    """
    seen: set[int] = set()
    both = merge(_rows(connection, table), _commitments(connection, table))
    for sequence, entries in groupby(both, key=lambda entry: entry.sequence):
        seen.add(sequence)
        erased = erasures.get((sequence, table.name), {})
        yield from _check_event(table, sequence, promises.get(sequence), entries, erased)
    for sequence in sorted(promises.keys() - seen):
        yield Problem(
            "row_dropped",
            table.name,
            f"all {promises[sequence].count:,} rows that event {sequence} recorded are gone, "
            "and with them what it promised about each",
        )


def _check_event(
    table: Table,
    sequence: int,
    promise: Promise | None,
    entries: Iterator[_Entry],
    erased: Mapping[int, int],
) -> Iterator[Problem | Erased | None]:
    from_rows, from_commitments = MerkleTree(), MerkleTree()
    of_rows: list[Problem] = []
    for _, same in groupby(entries, key=lambda entry: entry.order):
        found = list(same)
        promised = [entry for entry in found if not entry.is_row]
        rows = [entry for entry in found if entry.is_row]
        for entry in promised:
            from_commitments.add(entry.digest)
        for entry in rows:
            from_rows.add(entry.digest)
            yield None
        erasing = [erased[entry.position] for entry in promised if entry.position in erased]
        if erasing and not rows:
            from_rows.add(promised[0].digest)
            yield Erased(erasing[0])
            continue
        if erasing:
            yield _row_is_back(table, rows[0].key, erasing[0])
        problem = _compare(table, sequence, promised, rows)
        if problem is not None:
            of_rows.append(problem)
    if promise is None:
        yield Problem("row_added", table.name, f"{from_rows.count:,} rows name event {sequence}, which recorded none")
        return
    rows_hold = (from_rows.count, from_rows.root()) == (promise.count, promise.root)
    commitments_hold = (from_commitments.count, from_commitments.root()) == (promise.count, promise.root)
    if not rows_hold:
        yield from of_rows
    if not commitments_hold:
        named = f"; first at {of_rows[0].subject}" if of_rows else ""
        together = "" if rows_hold or of_rows else ", together with the rows they speak for"
        yield Problem(
            "commitment_changed",
            f"row_commitment of event {sequence}, {table.name}",
            f"the {promise.count:,} commitments no longer give the root in event {sequence}: "
            f"they were changed{together}{named}",
        )


def _row_is_back(table: Table, key: str, erasing_event: int) -> Problem:
    return Problem(
        "row_added", f"{table.name} {key}", f"the row was erased by event {erasing_event}, and is there again"
    )


def _compare(table: Table, sequence: int, promised: list[_Entry], rows: list[_Entry]) -> Problem | None:
    key = (promised or rows)[0].key
    subject = f"{table.name} {key}"
    if not rows:
        return Problem("row_dropped", subject, f"the row that event {sequence} recorded is gone")
    if not promised or len(rows) > len(promised):
        return Problem("row_added", subject, f"the row was not recorded by event {sequence}, which it names")
    if rows[0].digest != promised[0].digest:
        return Problem("row_changed", subject, f"the row is not as event {sequence} recorded it")
    return None


def _rows(connection: duckdb.DuckDBPyConnection, table: Table) -> Iterator[_Entry]:
    template = "SELECT $columns, event_sequence, salt FROM $ledger.main.$table ORDER BY event_sequence, $keys"
    columns, keys = ", ".join(table.schema.names), ", ".join(table.key)
    query = statement(template, columns=columns, ledger=LEDGER, table=table.name, keys=keys)
    for batch in _batches(connection, query):
        data = batch.select(table.schema.names).cast(pa.schema([each.with_nullable(True) for each in table.schema]))
        salts = [salt or b"" for salt in batch.column("salt").to_pylist()]
        sequences = batch.column("event_sequence").to_pylist()
        digests = row_digests(table, data, salts)
        for sequence, key, digest in zip(sequences, row_keys(table, data), digests, strict=True):
            yield _Entry(sequence, _sortable(key), True, key_text(key), digest)


def _commitments(connection: duckdb.DuckDBPyConnection, table: Table) -> Iterator[_Entry]:
    template = """
        SELECT event_sequence, row_key, row_digest, position
        FROM $ledger.main.row_commitment WHERE table_name = ? ORDER BY event_sequence, position"""
    query = statement(template, ledger=LEDGER)
    for batch in _batches(connection, query, [table.name]):
        for sequence, key, digest, position in zip(*(column.to_pylist() for column in batch.columns), strict=True):
            yield _Entry(sequence, _sortable(_parsed(key)), False, key, digest, position)


def _batches(
    connection: duckdb.DuckDBPyConnection, query: str, parameters: list[Any] | None = None
) -> Iterator[pa.Table]:
    cursor = second(connection)
    try:
        for batch in cursor.sql(query, params=parameters or []).to_arrow_reader(_BATCH_ROWS):
            yield pa.Table.from_batches([batch])
    finally:
        cursor.close()


def _parsed(key: str) -> tuple[Any, ...]:
    try:
        parsed = json.loads(key)
    except UNREADABLE:
        return (key,)
    return tuple(parsed) if isinstance(parsed, list) else (key,)


def _sortable(key: tuple[Any, ...]) -> tuple[tuple[int, Any], ...]:
    # DuckDB orders text by its UTF-8 bytes, as Python orders str by code point.
    return tuple(
        (0, part) if isinstance(part, int) else (1, part) if isinstance(part, str) else (2, repr(part)) for part in key
    )
