"""Which digest each kept file that decides scores must have."""

from __future__ import annotations

import duckdb

from gradtrail.lineage.connections import first_row

FIRST_PINNING_VERSION = 19
"""The schema version that began to pin files."""


def pinned_sha256(connection: duckdb.DuckDBPyConnection, file: str) -> str | None:
    """The digest that a file had when it was made last; None where that was never recorded."""
    query = "SELECT file_sha256 FROM pinned_file WHERE file = ? ORDER BY revision DESC LIMIT 1"
    row = first_row(connection, query, [file])
    return str(row[0]) if row else None


def times_pinned(connection: duckdb.DuckDBPyConnection, file: str) -> int:
    """How often other bytes of a file were recorded."""
    row = first_row(connection, "SELECT count(*) FROM pinned_file WHERE file = ?", [file])
    return int(row[0]) if row else 0


def kept_digests(connection: duckdb.DuckDBPyConnection) -> dict[str, str]:
    """The digest of every pinned file, by its path relative to the home folder."""
    query = "SELECT file, arg_max(file_sha256, revision) FROM pinned_file GROUP BY file ORDER BY file"
    return dict(connection.execute(query).fetchall())


def recorded_before_pinning(connection: duckdb.DuckDBPyConnection, index_id: str) -> bool:
    """Whether an index is older than pins in this ledger, so that a file of it may rightly have none."""
    query = """
        SELECT gradient_index.event_sequence < schema_version.event_sequence
        FROM gradient_index, schema_version WHERE index_id = ? AND version = ?"""
    row = first_row(connection, query, [index_id, FIRST_PINNING_VERSION])
    return bool(row and row[0])
