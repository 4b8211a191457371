"""Erasing from the ledger: rows and salts go, a tombstone says which, and the chain still holds.

One transaction deletes the rows and records the erasure, so that no kill leaves one without the other. Where only a
part of a row must go (a prediction, an attribute from before it was declared personal) the row is deleted, and what
may stay of it is recorded anew by the erasure's own event. `rewriting` then removes the bytes.

An erasure counts as unfinished until `finish` is recorded, which the caller does when every other trace is gone too.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import duckdb

from gradtrail.digests import sha256_json, short
from gradtrail.lineage.chain.appending import append
from gradtrail.lineage.chain.integrity import key_text
from gradtrail.lineage.chain.row_check import Problem
from gradtrail.lineage.chain.rows import rows_of
from gradtrail.lineage.connections import first_row
from gradtrail.lineage.erasure.plan import Deletion, ErasureRequest, SubjectKind, planned_deletions
from gradtrail.lineage.ledger.writing import Ledger
from gradtrail.lineage.schema.statements import statement

FINISHED = "erasure_finished"
_GONE = "gone"


@dataclass(frozen=True)
class Erasure:
    """An erasure: what it is about, and how many rows it deletes of each table. `event_sequence` is 0 before it ran."""

    erasure_id: str
    subjects: tuple[tuple[SubjectKind, str], ...]
    rows: tuple[tuple[str, int], ...]
    event_sequence: int = 0


def plan_erasure(connection: duckdb.DuckDBPyConnection, request: ErasureRequest) -> Erasure | None:
    """What the request would erase; None when all of it is gone already.

    Raises:
        NotFoundError: an example or output that was never recorded, or nobody of that name.
    """
    subjects, deletions = planned_deletions(connection, request)
    return _described(connection, subjects, deletions) if subjects else None


def erase(ledger: Ledger, request: ErasureRequest, reason: str | None = None) -> Erasure | None:
    """Delete what the request asks for and record the tombstones, in one transaction; None when all is gone already.

    Raises:
        NotFoundError: an example or output that was never recorded, or nobody of that name.
    """
    with ledger.transaction() as connection:
        subjects, deletions = planned_deletions(connection, request)
        if not subjects:
            return None
        planned = _described(connection, subjects, deletions)
        tombstones = [
            (event, name, position, planned.erasure_id) for event, name, position in _places(connection, deletions)
        ]
        for deletion in deletions:
            _delete(connection, deletion)
        records = [(planned.erasure_id, place, *subject, reason) for place, subject in enumerate(subjects)]
        instead = [each.instead for each in deletions if each.instead is not None]
        append(
            connection,
            "erasure",
            planned.erasure_id,
            [rows_of("erasure", records), rows_of("erased_row", tombstones), *instead],
        )
        row = first_row(connection, "SELECT max(sequence) FROM event")
    return replace(planned, event_sequence=int(row[0]) if row else 0)


def unfinished(connection: duckdb.DuckDBPyConnection) -> list[Erasure]:
    """Erasures that were recorded and not finished, in that order."""
    query = """
        SELECT erasure_id, event_sequence FROM erasure
        WHERE NOT EXISTS (SELECT 1 FROM event WHERE event.kind = ? AND event.subject = erasure.erasure_id)
        GROUP BY ALL ORDER BY event_sequence"""
    found = []
    for erasure_id, sequence in connection.execute(query, [FINISHED]).fetchall():
        subjects = connection.execute(
            "SELECT kind, subject_id FROM erasure WHERE erasure_id = ? ORDER BY position", [erasure_id]
        ).fetchall()
        rows = connection.execute(
            "SELECT table_name, count(*) FROM erased_row WHERE erasure_id = ? GROUP BY ALL ORDER BY ALL", [erasure_id]
        ).fetchall()
        found.append(Erasure(erasure_id, tuple(subjects), tuple(rows), sequence))
    return found


def unfinished_erasures(connection: duckdb.DuckDBPyConnection) -> Iterator[Problem]:
    """The same as problems of a verification."""
    for erasure in unfinished(connection):
        yield Problem(
            "erasure_unfinished",
            f"erasure {short(erasure.erasure_id)} of event {erasure.event_sequence}",
            "traces of what it erased may be left; `gradtrail erase` finishes it",
        )


def finish(ledger: Ledger, erasure_id: str) -> None:
    """Record that nothing is left of what was erased."""
    with ledger.transaction() as connection:
        append(connection, FINISHED, erasure_id, [])


def erased_subjects(connection: duckdb.DuckDBPyConnection, kinds: Collection[SubjectKind]) -> dict[str, int]:
    """The event that erased it, by subject, of all subjects of these kinds."""
    query = "SELECT subject_id, min(event_sequence) FROM erasure WHERE kind IN (SELECT unnest(?)) GROUP BY ALL"
    return dict(connection.execute(query, [sorted(kinds)]).fetchall())


def _described(
    connection: duckdb.DuckDBPyConnection, subjects: Sequence[tuple[SubjectKind, str]], deletions: Sequence[Deletion]
) -> Erasure:
    places = [list(each) for each in _places(connection, deletions)]
    erasure_id = sha256_json({"rows": places, "subjects": [list(each) for each in subjects]})
    counts = tuple((each.rows.table.name, each.rows.count) for each in deletions)
    return Erasure(erasure_id, tuple(subjects), counts)


def _places(connection: duckdb.DuckDBPyConnection, deletions: Sequence[Deletion]) -> list[tuple[int, str, int]]:
    """Where the rows stand in row_commitment: event, table, position.

    A row that an earlier erasure recorded anew has two places under its key; the one that is erased already stays out.
    """
    query = """
        SELECT event_sequence, table_name, position
        FROM row_commitment JOIN (SELECT unnest($2) AS event_sequence, unnest($3) AS row_key) AS gone
        USING (event_sequence, row_key)
        WHERE table_name = $1 AND NOT EXISTS (
            SELECT 1 FROM erased_row
            WHERE erased_row.erased_event = row_commitment.event_sequence
                AND erased_row.table_name = row_commitment.table_name
                AND erased_row.position = row_commitment.position)"""
    places = []
    for each in deletions:
        keys = [key_text(key) for key in each.row_keys()]
        places += connection.execute(query, [each.rows.table.name, list(each.sequences), keys]).fetchall()
    return sorted(places)


def _delete(connection: duckdb.DuckDBPyConnection, deletion: Deletion) -> None:
    table = deletion.rows.table
    connection.register(_GONE, deletion.rows.data.select(list(table.key)))
    with _unguarded(connection, table.name):
        same = " AND ".join(f"{table.name}.{column} = {_GONE}.{column}" for column in table.key)
        query = statement("DELETE FROM $table USING $gone", table=table.name, gone=_GONE)
        connection.execute(f"{query} WHERE {same}")
    connection.unregister(_GONE)


@contextmanager
def _unguarded(connection: duckdb.DuckDBPyConnection, name: str) -> Iterator[None]:
    """Within the open transaction, take the trigger against deletion away and put it back as it was."""
    query = "SELECT trigger_name, sql FROM duckdb_triggers() WHERE table_name = ? AND trigger_name LIKE '%_delete'"
    [(trigger, definition)] = connection.execute(query, [name]).fetchall()
    connection.execute(statement("DROP TRIGGER $trigger ON $table", trigger=trigger, table=name))
    yield
    connection.execute(definition)
