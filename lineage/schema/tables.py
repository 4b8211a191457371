"""The ledger's tables as Arrow: the columns a writer hands over, the key, and what may differ under one key.

All of it but the labels is read from the numbered files of `schema/`, by creating their tables in a database in memory;
there each table has two more columns, `event_sequence` and `salt`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache

import duckdb
import pyarrow as pa

from gradtrail.lineage.schema.files import SchemaFile, newest_version, schema_files_until

_TEXT = pa.string()
_WHOLE = pa.int64()
_ARROW: Mapping[str, pa.DataType] = {
    "VARCHAR": _TEXT,
    "JSON": _TEXT,
    "BIGINT": _WHOLE,
    "DOUBLE": pa.float64(),
    "BOOLEAN": pa.bool_(),
    "TIMESTAMP WITH TIME ZONE": pa.timestamp("us", tz="UTC"),
    "MAP(VARCHAR, VARCHAR)": pa.map_(_TEXT, _TEXT),
    "MAP(VARCHAR, DOUBLE)": pa.map_(_TEXT, pa.float64()),
    "VARCHAR[]": pa.list_(_TEXT),
}
_OF_THE_LEDGER = ("event_sequence", "salt")
_LABELS: Mapping[str, frozenset[str]] = {
    "dataset_version": frozenset({"name", "manifest_uri"}),
    "training_run": frozenset({"name", "started_at", "parameters"}),
    "model_version": frozenset({"measured_by"}),
    "model_version_checkpoint": frozenset({"source_uri", "weights_uri"}),
    "gradient_index": frozenset({"table_uri", "adapter", "adapter_sha256", "measured_with", "checks"}),
    "weighting": frozenset({"evidence"}),
    "audit": frozenset({"method_notes"}),
    "audit_output": frozenset({"position"}),
    "finding": frozenset({"message", "evidence"}),
    "report": frozenset({"html_uri"}),
    "withdrawal": frozenset({"example_count", "reason"}),
}


@dataclass(frozen=True)
class Table:
    """One table of the ledger.

    `labels` are columns that say what a thing was called or where it lay when it was first recorded. They may differ
    when the same id is recorded again; the first ones stay. `json` are columns of text that is JSON.
    """

    name: str
    schema: pa.Schema
    key: tuple[str, ...]
    labels: frozenset[str] = frozenset()
    json: frozenset[str] = frozenset()


def tables_at(version: int) -> Mapping[str, Table]:
    """Every table that a ledger of that version has, by name, but event and row_commitment."""
    return _tables(schema_files_until(version))


class _Newest(Mapping[str, Table]):
    """The tables of the newest version, read from the schema files when somebody asks first."""

    def __getitem__(self, name: str) -> Table:
        return tables_at(newest_version())[name]

    def __iter__(self) -> Iterator[str]:
        return iter(tables_at(newest_version()))

    def __len__(self) -> int:
        return len(tables_at(newest_version()))


TABLES: Mapping[str, Table] = _Newest()

COMMITMENT_SCHEMA = pa.schema(
    [
        pa.field("event_sequence", _WHOLE, nullable=False),
        pa.field("table_name", _TEXT, nullable=False),
        pa.field("position", _WHOLE, nullable=False),
        pa.field("row_key", _TEXT, nullable=False),
        pa.field("row_digest", pa.binary(), nullable=False),
    ]
)


@cache
def _tables(files: tuple[SchemaFile, ...]) -> Mapping[str, Table]:
    with duckdb.connect(":memory:") as connection:
        for file in files:
            for each in connection.extract_statements(file.text):
                if each.query.lstrip().startswith(("CREATE TABLE ", "ALTER TABLE ")):
                    connection.execute(each)
        query = """
            SELECT table_name, constraint_column_names
            FROM duckdb_constraints() WHERE constraint_type = 'PRIMARY KEY'"""
        keys = dict(connection.execute(query).fetchall())
        columns: dict[str, dict[str, tuple[str, bool]]] = {}
        query = """
            SELECT table_name, column_name, data_type, is_nullable
            FROM duckdb_columns() ORDER BY table_oid, column_index"""
        for table, column, kind, nullable in connection.execute(query).fetchall():
            columns.setdefault(table, {})[column] = (kind, nullable)
    return {
        name: _table(name, tuple(keys[name]), found)
        for name, found in columns.items()
        if found.keys() >= set(_OF_THE_LEDGER)
    }


def _table(name: str, key: tuple[str, ...], columns: Mapping[str, tuple[str, bool]]) -> Table:
    own = {column: said for column, said in columns.items() if column not in _OF_THE_LEDGER}
    return Table(
        name,
        pa.schema([pa.field(column, _ARROW[kind], nullable=nullable) for column, (kind, nullable) in own.items()]),
        key,
        _LABELS.get(name, frozenset()),
        frozenset(column for column, (kind, _) in own.items() if kind == "JSON"),
    )
