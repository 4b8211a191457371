"""Migrations: forward only, in one transaction, each numbered file recorded in the ledger itself."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

import duckdb

from gradtrail.digests import sha256_bytes
from gradtrail.errors import LedgerError
from gradtrail.lineage.connections import first_row
from gradtrail.lineage.schema.files import (
    LAST_WITH_VIEWS,
    SchemaFile,
    create_schema,
    definitions,
    newest_version,
    schema_files,
    schema_files_until,
)


def version_of(connection: duckdb.DuckDBPyConnection) -> int:
    """The schema version of an open ledger; 0 when it has no tables yet.

    Raises:
        LedgerError: a newer gradtrail wrote it, or the file is a database of something else.
    """
    tables = {row[0] for row in connection.execute("SELECT table_name FROM duckdb_tables()").fetchall()}
    if not tables:
        return 0
    if "schema_version" not in tables:
        raise LedgerError(
            f"The database holds tables of something else, for example {min(tables)}.",
            "Point the ledger at a file of its own.",
        )
    row = first_row(connection, "SELECT max(version) FROM schema_version")
    version = int(row[0]) if row and row[0] is not None else 0
    if version > newest_version():
        raise LedgerError(
            f"The ledger has schema version {version}; this gradtrail knows versions up to {newest_version()}.",
            "Install the newer gradtrail that wrote it.",
        )
    return version


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
    expected, found = _expected_definitions(schema_files_until(version)), _definitions(connection)
    # No file says any more what the views and macros of a version between were; the next migration creates them anew.
    renewed = definitions() if LAST_WITH_VIEWS < version < newest_version() else {}
    differences = {}
    for name in sorted(expected.keys() | found.keys()):
        if name[0] in {"view", "macro"} and name[1] in renewed:
            continue
        if name not in found:
            differences[name[1]] = f"the {name[0]} is gone"
        elif name not in expected:
            differences[name[1]] = f"the {name[0]} does not belong to the ledger"
        elif expected[name] != found[name]:
            differences[name[1]] = f"the {name[0]} is defined otherwise than gradtrail defines it"
    return differences


@cache
def _expected_definitions(files: tuple[SchemaFile, ...]) -> Mapping[tuple[str, str], str]:
    with duckdb.connect(":memory:") as fresh:
        create_schema(fresh, files[-1].version)
        return _definitions(fresh)


def _definitions(connection: duckdb.DuckDBPyConnection) -> dict[tuple[str, str], str]:
    query = """
        SELECT 'table', table_name, sql FROM duckdb_tables() WHERE NOT internal
        UNION ALL SELECT 'view', view_name, sql FROM duckdb_views() WHERE NOT internal
        UNION ALL SELECT 'trigger', trigger_name, sql FROM duckdb_triggers()"""
    found = {(kind, name): text for kind, name, text in connection.execute(query).fetchall()}
    return found | _macros(connection)


def _macros(connection: duckdb.DuckDBPyConnection) -> dict[tuple[str, str], str]:
    """Parameters with their defaults and body of every macro."""
    query = """
        SELECT function_name, any_value(function_type), max(len(parameters)),
            list(macro_definition ORDER BY macro_definition)
        FROM duckdb_functions() WHERE NOT internal AND macro_definition IS NOT NULL GROUP BY function_name"""
    found = {}
    for name, kind, parameters, bodies in connection.execute(query).fetchall():
        quoted = name.replace('"', '""')
        arguments = ", ".join(["NULL"] * (parameters + 1))
        # No table holds the defaults. DuckDB names them when a macro gets more arguments than any form of it takes.
        try:
            connection.execute(f'{"FROM" if kind == "table_macro" else "SELECT"} "{quoted}"({arguments})')
            takes = ""
        except duckdb.Error as refusal:
            takes = str(refusal)
        found["macro", name] = "\n".join([takes, *bodies])
    return found
