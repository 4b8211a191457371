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
from typing import Any, Literal

import duckdb
import pyarrow as pa

from gradtrail.digests import sha256_json, short
from gradtrail.errors import NotFoundError
from gradtrail.lineage.append import append, unrecorded
from gradtrail.lineage.connections import first_row
from gradtrail.lineage.integrity import key_text, row_keys
from gradtrail.lineage.ledger import Ledger
from gradtrail.lineage.row_check import Problem
from gradtrail.lineage.rows import Rows, rows_of
from gradtrail.lineage.statements import statement
from gradtrail.lineage.tables import TABLES

SubjectKind = Literal["example", "attribute", "output", "payload"]
FINISHED = "erasure_finished"
_GONE = "gone"


@dataclass(frozen=True)
class ErasureRequest:
    """What is to be erased.

    Attributes:
        example_ids: their personal attributes and, in reports, their previews.
        output_ids: payload, prediction, gradients and previews.
        person: a value of a personal attribute, wherever it stands.
        payload_output_ids: outputs of which the payload alone has outlived its retention.
        personal_names: attributes that count as personal also where they were recorded before they did.
    """

    example_ids: tuple[str, ...] = ()
    output_ids: tuple[str, ...] = ()
    person: str = ""
    payload_output_ids: tuple[str, ...] = ()
    personal_names: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Erasure:
    """An erasure: what it is about, and how many rows it deletes of each table. `event_sequence` is 0 before it ran."""

    erasure_id: str
    subjects: tuple[tuple[SubjectKind, str], ...]
    rows: tuple[tuple[str, int], ...]
    event_sequence: int = 0


@dataclass(frozen=True)
class _Deletion:
    """Rows of one table to delete, with `event_sequence`; and what is recorded instead of them."""

    rows: Rows
    sequences: tuple[int, ...]
    instead: Rows | None = None


def plan_erasure(connection: duckdb.DuckDBPyConnection, request: ErasureRequest) -> Erasure | None:
    """What the request would erase; None when all of it is gone already.

    Raises:
        NotFoundError: an example or output that was never recorded, or nobody of that name.
    """
    subjects, deletions = _plan(connection, request)
    return _described(connection, subjects, deletions) if subjects else None


def erase(ledger: Ledger, request: ErasureRequest, reason: str | None = None) -> Erasure | None:
    """Delete what the request asks for and record the tombstones, in one transaction; None when all is gone already.

    Raises:
        NotFoundError: an example or output that was never recorded, or nobody of that name.
    """
    with ledger.transaction() as connection:
        subjects, deletions = _plan(connection, request)
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


def _plan(
    connection: duckdb.DuckDBPyConnection, request: ErasureRequest
) -> tuple[list[tuple[SubjectKind, str]], list[_Deletion]]:
    _require(connection, "example", "example_id", request.example_ids)
    _require(connection, "output", "output_id", (*request.output_ids, *request.payload_output_ids))
    examples, outputs = sorted(set(request.example_ids)), sorted(set(request.output_ids))
    personal = _stored(
        connection,
        "personal_attribute",
        "(example_id IN (SELECT unnest($1)) OR value = $2)",
        [examples, request.person or None],
    )
    deletions = [_Deletion(Rows(TABLES["personal_attribute"], each), sequences) for each, sequences in personal]
    deletions += _inline_attributes(connection, request, examples)
    predictions = _stored(
        connection, "audit_output", "output_id IN (SELECT unnest($1)) AND prediction <> $2", [outputs, ""]
    )
    for data, sequences in predictions:
        blank = data.set_column(
            data.schema.get_field_index("prediction"),
            data.schema.field("prediction"),
            pa.array([""] * data.num_rows, pa.string()),
        )
        table = TABLES["audit_output"]
        deletions.append(_Deletion(Rows(table, data), sequences, Rows(table, blank)))
    named = {
        example_id
        for each in deletions
        if "example_id" in each.rows.table.key
        for example_id in each.rows.data.column("example_id").to_pylist()
    }
    if request.person and not named.difference(examples) and not examples:
        raise NotFoundError(
            "No personal attribute in the ledger has that value.",
            "Write it exactly as it was recorded, and name the attribute in the setting personal_attributes.",
        )
    asked: list[tuple[SubjectKind, str]] = [("example", each) for each in examples]
    asked += [("attribute", each) for each in sorted(named.difference(examples))]
    asked += [("output", each) for each in outputs]
    asked += [("payload", each) for each in sorted(set(request.payload_output_ids).difference(outputs))]
    done = set(connection.execute("SELECT DISTINCT kind, subject_id FROM erasure").fetchall())
    touched = {*named, *(key[1] for each in deletions for key in _keys(each) if each.rows.table.name == "audit_output")}
    return [each for each in asked if each not in done or each[1] in touched], deletions


def _inline_attributes(
    connection: duckdb.DuckDBPyConnection, request: ErasureRequest, examples: Sequence[str]
) -> Iterator[_Deletion]:
    """Personal attributes that were recorded in `example` before they were declared personal."""
    names = sorted(request.personal_names)
    condition = """(example_id IN (SELECT unnest($1)) OR list_contains(map_values(attributes), $2))
        AND len(list_intersect(map_keys(attributes), $3)) > 0"""
    for data, sequences in _stored(connection, "example", condition, [examples, request.person or None, names]):
        kept = [
            [
                (name, value)
                for name, value in attributes
                if name not in request.personal_names or (example_id not in examples and value != request.person)
            ]
            for example_id, attributes in zip(
                data.column("example_id").to_pylist(), data.column("attributes").to_pylist(), strict=True
            )
        ]
        changed = [new != old for new, old in zip(kept, data.column("attributes").to_pylist(), strict=True)]
        if any(changed):
            place, field = data.schema.get_field_index("attributes"), data.schema.field("attributes")
            mask = pa.array(changed)
            table = TABLES["example"]
            yield _Deletion(
                Rows(table, data.filter(mask)),
                tuple(each for each, wanted in zip(sequences, changed, strict=True) if wanted),
                Rows(table, data.set_column(place, field, pa.array(kept, field.type)).filter(mask)),
            )


def _stored(
    connection: duckdb.DuckDBPyConnection, name: str, condition: str, parameters: Sequence[Any]
) -> Iterator[tuple[pa.Table, tuple[int, ...]]]:
    """The rows of a table that meet a condition, with their events; nothing where there are none."""
    table = TABLES[name]
    template = "SELECT $columns, event_sequence FROM $table ORDER BY $keys"
    query = statement(template, columns=", ".join(table.schema.names), table=name, keys=", ".join(table.key))
    query = query.replace(" ORDER BY", f" WHERE {condition} ORDER BY")
    found = connection.sql(query, params=list(parameters)).to_arrow_table().combine_chunks()
    if found.num_rows:
        yield found.select(table.schema.names).cast(table.schema), tuple(found.column("event_sequence").to_pylist())


def _described(
    connection: duckdb.DuckDBPyConnection, subjects: Sequence[tuple[SubjectKind, str]], deletions: Sequence[_Deletion]
) -> Erasure:
    places = [list(each) for each in _places(connection, deletions)]
    erasure_id = sha256_json({"rows": places, "subjects": [list(each) for each in subjects]})
    counts = tuple((each.rows.table.name, each.rows.count) for each in deletions)
    return Erasure(erasure_id, tuple(subjects), counts)


def _places(connection: duckdb.DuckDBPyConnection, deletions: Sequence[_Deletion]) -> list[tuple[int, str, int]]:
    """Where the rows stand in row_commitment: event, table, position."""
    query = """
        SELECT event_sequence, table_name, position FROM row_commitment
        WHERE table_name = $1 AND event_sequence IN (SELECT unnest($2)) AND row_key IN (SELECT unnest($3))"""
    places = []
    for each in deletions:
        keys = [key_text(key) for key in _keys(each)]
        places += connection.execute(query, [each.rows.table.name, sorted(set(each.sequences)), keys]).fetchall()
    return sorted(places)


def _keys(deletion: _Deletion) -> list[tuple[Any, ...]]:
    return row_keys(deletion.rows.table, deletion.rows.data)


def _delete(connection: duckdb.DuckDBPyConnection, deletion: _Deletion) -> None:
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


def _require(connection: duckdb.DuckDBPyConnection, table: str, column: str, values: Sequence[str]) -> None:
    if missing := unrecorded(connection, table, column, values):
        raise NotFoundError(
            f"The {table} {missing[0]} is not in the ledger.", "Check its id; `gradtrail sql` lists them."
        )
