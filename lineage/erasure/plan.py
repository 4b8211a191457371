"""Which rows have to go when something is to be erased, and what may be recorded instead of them."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import duckdb
import pyarrow as pa

from gradtrail.digests import canonical_json, sha256_json
from gradtrail.errors import NotFoundError
from gradtrail.lineage.chain.appending import unrecorded
from gradtrail.lineage.chain.integrity import row_keys
from gradtrail.lineage.chain.rows import Rows
from gradtrail.lineage.schema.statements import statement
from gradtrail.lineage.schema.tables import TABLES

SubjectKind = Literal["example", "attribute", "output", "payload", "audit", "withdrawal"]
_ROW = re.compile(r"row [0-9]+")
ERASED = "(erased)"
"""Stands where a row or a sentence had to keep a place for what was erased."""

_SUBJECT_COLUMN: Mapping[str, str] = {
    "audit_output": "output_id", "quarantine": "record_id", "share": "audit_id", "finding": "audit_id",
    "withdrawal": "withdrawal_id",
}  # fmt: skip
_QUOTING: Mapping[str, SubjectKind] = {"share": "audit", "finding": "audit", "withdrawal": "withdrawal"}


@dataclass(frozen=True)
class ErasureRequest:
    """What is to be erased.

    Attributes:
        example_ids: their personal attributes and, in reports, their previews.
        output_ids: payload, prediction, gradients, previews, and the causes of their quarantines, which quote them. A
            record that was refused when it was read has no output id: it is `FILE:row N` or `SOURCE:RECORD ID`.
        waiting_output_ids: those of them that were read and are not in the ledger yet.
        person: a value of a personal attribute, wherever it stands.
        payload_output_ids: outputs of which the payload alone has outlived its retention.
        personal_names: attributes that count as personal also where they were recorded before they did.
    """

    example_ids: tuple[str, ...] = ()
    output_ids: tuple[str, ...] = ()
    waiting_output_ids: frozenset[str] = frozenset()
    person: str = ""
    payload_output_ids: tuple[str, ...] = ()
    personal_names: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Deletion:
    """Rows of one table to delete, with the events that recorded them; and what is recorded instead of them."""

    rows: Rows
    sequences: tuple[int, ...]
    instead: Rows | None = None

    def row_keys(self) -> list[tuple[Any, ...]]:
        """The primary keys of the rows."""
        return row_keys(self.rows.table, self.rows.data)

    def subjects(self) -> set[str]:
        """Ids of the outputs, audits or withdrawals that the rows are about."""
        column = _SUBJECT_COLUMN.get(self.rows.table.name)
        return set(self.rows.data.column(column).to_pylist()) if column else set()


def planned_deletions(
    connection: duckdb.DuckDBPyConnection, request: ErasureRequest
) -> tuple[list[tuple[SubjectKind, str]], list[Deletion]]:
    """What a request is about that is not gone already, and the rows that have to go for it.

    Raises:
        NotFoundError: an example or output that was never recorded, or nobody of that name.
    """
    _require(connection, "example", "example_id", request.example_ids)
    query = "SELECT subject_id FROM erasure WHERE kind = 'output'"
    erased = {row[0] for row in connection.execute(query).fetchall()}
    elsewhere = request.waiting_output_ids | erased | _quarantined_ids(connection, request.output_ids)
    recorded = [each for each in request.output_ids if each not in elsewhere]
    _require(connection, "output", "output_id", (*recorded, *request.payload_output_ids))
    examples, outputs = sorted(set(request.example_ids)), sorted(set(request.output_ids))
    condition = "example_id IN (SELECT unnest($1)) OR value = $2"
    deletions = [
        Deletion(Rows(TABLES["personal_attribute"], rows), sequences)
        for rows, sequences in _stored(
            connection, "personal_attribute", condition, [examples, request.person or None]
        )
    ]  # fmt: skip
    deletions += _inline_attributes(connection, request, examples)
    deletions += _quotations(connection, request)
    condition = "output_id IN (SELECT unnest($1)) AND prediction <> ''"
    for rows, sequences in _stored(connection, "audit_output", condition, [outputs]):
        deletions.append(_with_columns("audit_output", rows, sequences, prediction=[""] * rows.num_rows))
    deletions += _causes(connection, outputs)
    carriers = {
        example_id
        for each in deletions
        if "example_id" in each.rows.table.key
        for example_id in each.rows.data.column("example_id").to_pylist()
    }
    quoting = {
        (_QUOTING[each.rows.table.name], subject_id)
        for each in deletions
        if each.rows.table.name in _QUOTING
        for subject_id in each.subjects()
    }
    if request.person and not (carriers or quoting or examples):
        raise NotFoundError(
            "No personal attribute in the ledger has that value.",
            "Write it exactly as it was recorded, and name the attribute in the setting personal_attributes.",
        )
    asked: list[tuple[SubjectKind, str]] = [("example", each) for each in examples]
    asked += [("attribute", each) for each in sorted(carriers.difference(examples))]
    asked += sorted(quoting)
    asked += [("output", each) for each in outputs]
    asked += [("payload", each) for each in sorted(set(request.payload_output_ids).difference(outputs))]
    done = set(connection.execute("SELECT DISTINCT kind, subject_id FROM erasure").fetchall())
    touched = carriers.union(*(each.subjects() for each in deletions))
    again = [each for each in asked if each[1] in touched or each[1].partition(":")[2] in touched]
    return [each for each in asked if each not in done or each in again], deletions


def names_refused(output_ids: Collection[str]) -> list[str]:
    """The record ids under which records that were refused when they were read stand in the quarantine.

    Their source there is the file, so that an id does not say which: the same id in other files is taken, too.
    """
    tails = (each.partition(":")[2] for each in output_ids)
    return sorted({each for each in tails if each and not _ROW.fullmatch(each)})


_OF_OUTPUTS = """(source IN ('measuring', 'measuring labels') AND record_id IN (SELECT unnest($1)))
    OR source || ':' || record_id IN (SELECT unnest($1))
    OR (source NOT IN ('measuring', 'measuring labels', 'registry') AND record_id IN (SELECT unnest($2)))"""


def _quarantined_ids(connection: duckdb.DuckDBPyConnection, output_ids: Sequence[str]) -> set[str]:
    """Those of the ids under which a record stands in the quarantine."""
    query = f"SELECT source, record_id FROM quarantine WHERE {_OF_OUTPUTS}"  # noqa: S608 - our own words
    found = connection.execute(query, [list(output_ids), names_refused(output_ids)]).fetchall()
    known = {record_id for _, record_id in found} | {f"{source}:{record_id}" for source, record_id in found}
    return {each for each in output_ids if each in known or each.partition(":")[2] in known}


def _causes(connection: duckdb.DuckDBPyConnection, output_ids: Sequence[str]) -> Iterator[Deletion]:
    """Quarantines of the outputs, recorded anew without the cause: it quotes them, and their id is a digest of it."""
    condition = f"({_OF_OUTPUTS}) AND cause <> $3"
    names = names_refused(output_ids)
    for rows, sequences in _stored(connection, "quarantine", condition, [list(output_ids), names, ERASED]):
        named = zip(rows.column("source").to_pylist(), rows.column("record_id").to_pylist(), sequences, strict=True)
        ids = [
            sha256_json({"source": source, "record_id": record_id, "cause": ERASED, "event": event, "place": place})
            for place, (source, record_id, event) in enumerate(named)
        ]
        yield _with_columns("quarantine", rows, sequences, quarantine_id=ids, cause=[ERASED] * rows.num_rows)


def _inline_attributes(
    connection: duckdb.DuckDBPyConnection, request: ErasureRequest, examples: Sequence[str]
) -> Iterator[Deletion]:
    """Personal attributes that were recorded in `example` before they were declared personal."""
    names = sorted(request.personal_names)
    condition = """(example_id IN (SELECT unnest($1)) OR list_contains(map_values(attributes), $2))
        AND len(list_intersect(map_keys(attributes), $3)) > 0"""
    for rows, sequences in _stored(connection, "example", condition, [examples, request.person or None, names]):
        before = rows.column("attributes").to_pylist()
        after = [
            [
                (name, value)
                for name, value in attributes
                if name not in request.personal_names or (example_id not in examples and value != request.person)
            ]
            for example_id, attributes in zip(rows.column("example_id").to_pylist(), before, strict=True)
        ]
        changed = [new != old for new, old in zip(after, before, strict=True)]
        if any(changed):
            yield _with_columns(
                "example",
                rows.filter(pa.array(changed)),
                tuple(each for each, wanted in zip(sequences, changed, strict=True) if wanted),
                attributes=[each for each, wanted in zip(after, changed, strict=True) if wanted],
            )


def _quotations(connection: duckdb.DuckDBPyConnection, request: ErasureRequest) -> Iterator[Deletion]:
    """The person's name in shares, findings and withdrawals from before the attribute was declared personal."""
    person, names = request.person, sorted(request.personal_names)
    if not person or not names:
        return
    about = "attribute IN (SELECT unnest($1)) AND value = $2"
    for rows, sequences in _stored(connection, "share", about, [names, person]):
        yield _with_columns("share", rows, sequences, value=[ERASED] * rows.num_rows)
    for rows, sequences in _stored(connection, "withdrawal", about, [names, person]):
        nothing = [None] * rows.num_rows
        yield _with_columns("withdrawal", rows, sequences, attribute=nothing, value=nothing)
    # Findings quote values so in their sentences; a name that is part of another word is none.
    quoted = "contains(message, '“' || $1 || '”') OR contains(evidence::VARCHAR, to_json($1)::VARCHAR)"
    for rows, sequences in _stored(connection, "finding", quoted, [person]):
        messages = [each.replace(f"“{person}”", f"“{ERASED}”") for each in rows.column("message").to_pylist()]
        evidence = [
            canonical_json(_without(json.loads(each), person)).decode() for each in rows.column("evidence").to_pylist()
        ]
        yield _with_columns("finding", rows, sequences, message=messages, evidence=evidence)


def _without(value: Any, person: str) -> Any:
    if isinstance(value, dict):
        return {(ERASED if name == person else name): _without(each, person) for name, each in value.items()}
    if isinstance(value, list):
        return [_without(each, person) for each in value]
    return ERASED if value == person else value


def _with_columns(name: str, rows: pa.Table, sequences: tuple[int, ...], **columns: Sequence[Any]) -> Deletion:
    """The deletion of rows that are recorded anew with other values in some columns."""
    table, instead = TABLES[name], rows
    for column, values in columns.items():
        place, field = rows.schema.get_field_index(column), rows.schema.field(column)
        instead = instead.set_column(place, field, pa.array(values, field.type))
    instead = instead.sort_by([(column, "ascending") for column in table.key]).combine_chunks()
    return Deletion(Rows(table, rows), sequences, Rows(table, instead))


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


def _require(connection: duckdb.DuckDBPyConnection, table: str, column: str, values: Sequence[str]) -> None:
    if missing := unrecorded(connection, table, column, values):
        raise NotFoundError(
            f"The {table} {missing[0]} is not in the ledger.", "Check its id; `gradtrail sql` lists them."
        )
