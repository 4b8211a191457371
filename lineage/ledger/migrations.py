"""Migrations: forward only, in one transaction, each numbered file recorded in the ledger itself."""

from __future__ import annotations

import duckdb

from gradtrail.digests import sha256_bytes
from gradtrail.lineage.connections import first_row
from gradtrail.lineage.ledger.definitions import differences, found_definitions, recorded_version
from gradtrail.lineage.schema.files import create_schema, newest_version, schema_files


def version_of(connection: duckdb.DuckDBPyConnection) -> int:
    """The schema version of an open ledger; 0 when it has no tables yet.

    Raises:
        LedgerError: a newer gradtrail wrote it, or the file is a database of something else.
    """
    return recorded_version(connection, found_definitions(connection))


def is_current(connection: duckdb.DuckDBPyConnection) -> bool:
    """Whether an open ledger has the version that this gradtrail writes; raises as `version_of`.

    Looks at one table, where `version_of` loads the whole catalogue. Not for use within a transaction: DuckDB aborts it
    where that table is missing.
    """
    try:
        row = first_row(connection, "SELECT max(version) FROM schema_version")
    except duckdb.CatalogException:
        row = None
    return row == (newest_version(),) or version_of(connection) == newest_version()


def migrate(connection: duckdb.DuckDBPyConnection) -> None:
    """Bring the ledger to the newest version, within the caller's transaction. Does nothing when it is there."""
    # Whoever only asks for the version needs no Arrow.
    from gradtrail.lineage.chain.appending import append
    from gradtrail.lineage.chain.rows import rows_of

    current = version_of(connection)
    pending = [each for each in schema_files() if each.version > current]
    if not pending:
        return
    create_schema(connection, newest_version(), above=current)
    records = ((each.version, each.name, sha256_bytes(each.text.encode())) for each in pending)
    append(connection, "schema", f"version {pending[-1].version}", [rows_of("schema_version", records)])


def schema_differences(connection: duckdb.DuckDBPyConnection, version: int) -> dict[str, str]:
    """What a ledger of this version has, lacks or words otherwise than its schema files: message by name."""
    return differences(found_definitions(connection), version)
