"""What a ledger file defines, held against what gradtrail defines: objects of every kind, asked from outside of it.

A file may hold macros and views named like DuckDB's own functions. So nothing here is asked while the file is the
database in use: a cursor of its own stays in the empty database beside it, and names each function in full.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path

import duckdb

from gradtrail.digests import sha256_json
from gradtrail.errors import LedgerError
from gradtrail.lineage.connections import open_snapshot
from gradtrail.lineage.engines import LEDGER
from gradtrail.lineage.schema.files import (
    LAST_WITH_VIEWS,
    SchemaFile,
    create_schema,
    definitions,
    newest_version,
    schema_files_until,
)

Definitions = Mapping[tuple[str, str], str]
"""The text of every definition, by kind and name."""

_MAIN = "main"
_KEPT = "definitions.json"
# Without filters on `internal`: a file says itself which of its objects are, and a database of ours has the same ones.
_QUERIES: Mapping[str, str] = {
    "schema": "SELECT 'main', schema_name, [comment, tags::VARCHAR, internal::VARCHAR, sql] "
    "FROM system.main.duckdb_schemas() WHERE database_name = $1",
    "table": "SELECT schema_name, table_name, [tags::VARCHAR, internal::VARCHAR, temporary::VARCHAR, sql] "
    "FROM system.main.duckdb_tables() WHERE database_name = $1",
    "view": "SELECT schema_name, view_name, [tags::VARCHAR, internal::VARCHAR, temporary::VARCHAR, sql] "
    "FROM system.main.duckdb_views() WHERE database_name = $1",
    "macro": "SELECT schema_name, function_name, [function_type, comment, tags::VARCHAR, internal::VARCHAR, "
    "parameters::VARCHAR, parameter_types::VARCHAR, macro_definition] "
    "FROM system.main.duckdb_functions() WHERE database_name = $1",
    "type": "SELECT schema_name, type_name, [logical_type, comment, tags::VARCHAR, internal::VARCHAR, labels::VARCHAR] "
    "FROM system.main.duckdb_types() WHERE database_name = $1",
    "sequence": "SELECT schema_name, sequence_name, [comment, tags::VARCHAR, sql] "
    "FROM system.main.duckdb_sequences() WHERE database_name = $1",
    "index": "SELECT schema_name, index_name, [table_name, comment, tags::VARCHAR, sql] "
    "FROM system.main.duckdb_indexes() WHERE database_name = $1",
    "trigger": "SELECT schema_name, trigger_name, [table_name, comment, tags::VARCHAR, temporary::VARCHAR, sql] "
    "FROM system.main.duckdb_triggers() WHERE database_name = $1",
}
_COMMENTS = """
    SELECT schema_name, table_name, [comment] FROM system.main.duckdb_tables() WHERE database_name = $1
    UNION ALL SELECT schema_name, view_name, [comment] FROM system.main.duckdb_views() WHERE database_name = $1
    UNION ALL SELECT schema_name, table_name || '.' || column_name, [comment, tags::VARCHAR]
    FROM system.main.duckdb_columns() WHERE database_name = $1"""


def open_known_snapshot(snapshot: Path, config: dict[str, str] | None = None) -> duckdb.DuckDBPyConnection:
    """As `open_snapshot`, but refuses a file whose tables, views and macros are not gradtrail's own.

    A file that passed is not looked at again by this process as long as nobody writes it.

    Raises:
        NotFoundError: no snapshot was published yet.
        LedgerError: the file is held, cannot be opened, or defines something else than gradtrail does.
    """
    before = _identity(snapshot)
    connection = open_snapshot(snapshot, config)
    try:
        require_known(connection, snapshot, before)
    except BaseException:
        connection.close()
        raise
    return connection


def require_known(connection: duckdb.DuckDBPyConnection, path: Path, identity: object = None) -> None:
    """Refuse an open ledger or snapshot whose definitions are not gradtrail's own.

    Args:
        connection: on the file.
        path: of the file.
        identity: what the file was before it was opened; default: what it is now.

    Raises:
        LedgerError: names the first object that differs; or a newer gradtrail wrote the file.
    """
    identity = identity or _identity(path)
    if _known.get(path) == identity == _identity(path):
        return
    found = found_definitions(connection)
    version = recorded_version(connection, found)
    if _digest(found) != _expected_digest(version):
        for name, message in differences(found, version).items():
            raise LedgerError(
                f"{path} is not as gradtrail defines it: {name}: {message}.",
                "Run gradtrail verify, and restore the file from a copy. What you added yourself, take out again: "
                "views of your own belong into a database of your own, to which the snapshot is attached.",
            )
    _known[path] = identity


def remember_known(path: Path) -> None:
    """Say that this process has just written a file that was as gradtrail defines it."""
    _known[path] = _identity(path)


def recorded_version(connection: duckdb.DuckDBPyConnection, found: Definitions) -> int:
    """The schema version that a file with these definitions says it has; 0 when it has no tables yet.

    Raises:
        LedgerError: a newer gradtrail wrote it, or the file is a database of something else.
    """
    tables = {name for kind, name in found if kind == "table"}
    if not tables:
        return 0
    if "schema_version" not in tables:
        raise LedgerError(
            f"The database holds tables of something else, for example {min(tables)}.",
            "Point the ledger at a file of its own.",
        )
    database = _quoted(_database(connection))
    query = f"SELECT max(version) FROM {database}.main.schema_version"  # noqa: S608 - a quoted name
    [(version,)] = connection.cursor().execute(query).fetchall()
    if version is not None and version > newest_version():
        raise LedgerError(
            f"The ledger has schema version {version}; this gradtrail knows versions up to {newest_version()}.",
            "Install the newer gradtrail that wrote it.",
        )
    return int(version or 0)


def found_definitions(connection: duckdb.DuckDBPyConnection) -> Definitions:
    """Every object of the database in use, of whatever kind: names outside of the main schema begin with theirs."""
    clean, database = connection.cursor(), _database(connection)
    found: dict[tuple[str, str], str] = {}
    macros: dict[str, tuple[str, int, list[str]]] = {}
    for kind, query in _QUERIES.items():
        for schema, name, said in clean.execute(query, [database]).fetchall():
            full = _full_name(schema, name)
            if kind == "macro":
                count = said[4].count(",") + 1
                before = macros.get(full, ("", 0, []))
                macros[full] = (said[0], max(before[1], count), [*before[2], json.dumps([schema, name, *said])])
            else:
                place = (kind, full)
                found[place] = "\n".join([*([found[place]] if place in found else []), json.dumps(said)])
    for full, (function_type, parameters, said) in macros.items():
        takes = _taken(clean, database, json.loads(said[0])[:2], function_type, parameters)
        found["macro", full] = "\n".join([takes, *sorted(said)])
    try:
        for schema, name, said in clean.execute(_COMMENTS, [database]).fetchall():
            found["comment", _full_name(schema, name)] = json.dumps(said)
    except duckdb.Error as error:
        found["comment", "columns"] = f"cannot be listed: {error}"
    return found


def differences(found: Definitions, version: int) -> dict[str, str]:
    """What a file of this version has, lacks or words otherwise than its schema files: message by name."""
    expected = _expected(schema_files_until(version))
    renewed = definitions() if unknown_views(version) else {}
    told: dict[str, str] = {}
    # Comments last: those on an object that is named already say nothing more.
    for kind, name in sorted(expected.keys() | found.keys(), key=lambda each: (each[0] == "comment", each)):
        about = name.split(".")[0]
        if (kind in {"view", "macro", "comment"} and about in renewed) or (kind == "comment" and about in told):
            continue
        if (kind, name) not in found:
            message = f"the {kind} is gone"
        elif (kind, name) not in expected:
            message = f"the {kind} does not belong to the ledger"
        elif expected[kind, name] != found[kind, name]:
            message = f"the {kind} is defined otherwise than gradtrail defines it"
        else:
            continue
        told[name] = f"{told[name]}; {message}" if name in told else message
    return told


def unknown_views(version: int) -> bool:
    """Whether no file says any more what the views and macros of a version were; the next migration makes them anew."""
    return LAST_WITH_VIEWS < version < newest_version()


def kept_digest() -> dict[str, str]:
    """What `schema/definitions.json` has to hold: the digest of all definitions as this DuckDB words them."""
    version = newest_version()
    return {
        "duckdb": duckdb.__version__,
        "of": _source_sha256(version),
        "sha256": _digest(_expected(schema_files_until(version))),
    }


_known: dict[Path, object] = {}


def _identity(path: Path) -> object:
    """What changes whenever somebody writes the file, or a log of changes beside it."""
    said: list[object] = []
    for each in (path, path.with_name(path.name + ".wal")):
        try:
            status = each.stat()
        except OSError:
            said.append(None)
        else:
            said.append((status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns))
    return tuple(said)


def _digest(found: Definitions) -> str:
    return sha256_json([[*key, text] for key, text in sorted(found.items())])


def _expected_digest(version: int) -> str:
    """Creating the schema to ask what DuckDB makes of it takes 0.4 s; so its digest is kept for the usual DuckDB."""
    kept: dict[str, str] = json.loads(files("gradtrail.lineage").joinpath("schema", _KEPT).read_text("utf-8"))
    if kept["duckdb"] == duckdb.__version__ and kept["of"] == _source_sha256(version):
        return kept["sha256"]
    return _digest(_expected(schema_files_until(version)))


def _source_sha256(version: int) -> str:
    numbered = [[each.name, each.text] for each in schema_files_until(version)]
    return sha256_json([numbered, sorted(definitions().items()) if version == newest_version() else []])


@cache
def _expected(numbered: tuple[SchemaFile, ...]) -> Definitions:
    with duckdb.connect(":memory:") as fresh:
        fresh.execute(f"ATTACH ':memory:' AS {LEDGER}")
        fresh.execute(f"USE {LEDGER}")
        if numbered:
            create_schema(fresh, numbered[-1].version)
        return found_definitions(fresh)


def _taken(
    clean: duckdb.DuckDBPyConnection, database: str, name: list[str], function_type: str, parameters: int
) -> str:
    """What a macro takes, with defaults. No table holds those; DuckDB names them when it gets too many arguments."""
    arguments = ", ".join(["NULL"] * (parameters + 1))
    called = ".".join(_quoted(each) for each in (database, *name))
    try:
        clean.execute(f"EXPLAIN {'FROM' if function_type == 'table_macro' else 'SELECT'} {called}({arguments})")
    except duckdb.Error as refusal:
        return str(refusal).partition("Candidate macros:")[2].partition("\nLINE ")[0].strip()
    return ""


def _database(connection: duckdb.DuckDBPyConnection) -> str:
    [(name,)] = connection.execute("SELECT system.main.current_database()").fetchall()
    return str(name)


def _full_name(schema: str, name: str) -> str:
    return name if schema == _MAIN else f"{schema}.{name}"


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
