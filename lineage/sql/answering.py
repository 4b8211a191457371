"""Ad hoc SQL on the published snapshot: one reading statement, no files, no extensions, bounded memory and time.

This protects from accidents and careless statements. It is not a sandbox for hostile users of the same machine.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from gradtrail.errors import LedgerError, UsageError
from gradtrail.lineage.ledger.definitions import open_known_snapshot, unknown_views
from gradtrail.lineage.ledger.migrations import is_current, version_of

_BATCH_ROWS = 10_000
_LARGEST_RESULT_BYTES = 256 * 1024 * 1024
_READING = (duckdb.StatementType.SELECT, duckdb.StatementType.EXPLAIN)


def run_sql(
    snapshot: Path,
    statement: str,
    *,
    memory_limit: str = "1GB",
    timeout_seconds: float = 30,
    largest_result_bytes: int = _LARGEST_RESULT_BYTES,
    parameters: Sequence[Any] = (),
    beside: Mapping[str, Any] | None = None,
) -> pa.Table:
    """Run one SELECT-like statement (SELECT, FROM, WITH, VALUES, DESCRIBE, SHOW, SUMMARIZE, EXPLAIN) on the snapshot.

    Args:
        snapshot: the published copy of the ledger.
        statement: the statement.
        memory_limit: as DuckDB writes it.
        timeout_seconds: when the statement is stopped.
        largest_result_bytes: when the answer is refused.
        parameters: values for `?` or `$1` in the statement.
        beside: Arrow tables, or streams of them (`__arrow_c_stream__`), by the name under which the statement reads
            them beside the ledger's own.

    Raises:
        NotFoundError: no snapshot was published yet.
        LedgerError: a newer gradtrail published the snapshot, or it is damaged.
        UsageError: not one reading statement, refused by the lock-down, out of time or memory, too large a result, or
            an error in the SQL, with DuckDB's message.
    """
    with closing(open_known_snapshot(snapshot, {"memory_limit": memory_limit, "temp_directory": ""})) as connection:
        for setting in (
            "enable_external_access = false",
            "python_enable_replacements = false",
            "autoinstall_known_extensions = false",
            "autoload_known_extensions = false",
            "lock_configuration = true",
        ):
            connection.execute(f"SET {setting}")
        _require_known_views(connection, snapshot)
        for name, table in (beside or {}).items():
            connection.register(name, table)
        with _bounded(connection, timeout_seconds):
            _require_one_reading(connection, statement)
            return _fetch(connection, statement, parameters, largest_result_bytes)


def schema_text(snapshot: Path) -> str:
    """Tables, views and their columns, and macros with their arguments, with comments, as text to read.

    Raises:
        NotFoundError: no snapshot was published yet.
    """
    query = """
        SELECT relation.name, relation.kind, relation.comment, column_name, data_type, columns.comment
        FROM (
            SELECT table_name AS name, 'table' AS kind, comment FROM duckdb_tables() WHERE database_name = 'ledger'
            UNION ALL
            SELECT view_name, 'view', comment FROM duckdb_views() WHERE database_name = 'ledger' AND NOT internal
        ) AS relation
        JOIN duckdb_columns() AS columns ON columns.table_name = relation.name AND columns.database_name = 'ledger'
        ORDER BY relation.kind, relation.name, column_index"""
    macros = """
        SELECT function_name, parameters, comment FROM duckdb_functions()
        WHERE database_name = 'ledger' AND NOT internal AND macro_definition IS NOT NULL ORDER BY function_name"""
    lines: list[str] = []
    named = ""
    with closing(open_known_snapshot(snapshot)) as connection:
        for name, kind, comment, column, data_type, about in connection.execute(query).fetchall():
            if name != named:
                lines += ["", f"{name} ({kind}): {comment}"]
                named = name
            lines.append(f"  {column:<22} {data_type:<24} {about or ''}".rstrip())
        for name, arguments, comment in connection.execute(macros).fetchall():
            lines += ["", f"{name}({', '.join(arguments)}) (macro): {comment}"]
    return "\n".join(lines).strip() + "\n"


def _require_known_views(connection: duckdb.DuckDBPyConnection, snapshot: Path) -> None:
    if not is_current(connection) and unknown_views(version_of(connection)):
        raise LedgerError(
            f"An older gradtrail published the snapshot {snapshot}, whose views this one cannot check.",
            "Run `gradtrail ingest` or `gradtrail audit`: each publishes a new one.",
        )


def _require_one_reading(connection: duckdb.DuckDBPyConnection, statement: str) -> None:
    statements = connection.extract_statements(statement)
    if len(statements) != 1:
        raise UsageError(f"This is {len(statements)} statements.", "Give exactly one.")
    if statements[0].type not in _READING:
        raise UsageError(
            f"A {statements[0].type.name} statement is refused: the ledger can only be read here.",
            "Use SELECT, FROM, WITH, VALUES, DESCRIBE, SHOW, SUMMARIZE or EXPLAIN.",
        )


def _fetch(
    connection: duckdb.DuckDBPyConnection, statement: str, parameters: Sequence[Any], largest_result_bytes: int
) -> pa.Table:
    relation = connection.sql(statement, params=list(parameters))
    if relation is None:
        raise UsageError("The statement gives no rows.", "Give one that does.")
    reader = relation.to_arrow_reader(_BATCH_ROWS)
    batches, size = [], 0
    for batch in reader:
        size += batch.nbytes
        if size > largest_result_bytes:
            raise UsageError(
                f"The result is larger than {largest_result_bytes:,} bytes.", "Aggregate it, or add a LIMIT."
            )
        batches.append(batch)
    return pa.Table.from_batches(batches, reader.schema)


@contextmanager
def _bounded(connection: duckdb.DuckDBPyConnection, timeout_seconds: float) -> Iterator[None]:
    expired = threading.Event()

    def interrupt() -> None:
        expired.set()
        connection.interrupt()

    timer = threading.Timer(timeout_seconds, interrupt)
    timer.start()
    try:
        yield
    except (duckdb.Error, pa.ArrowException, OSError) as error:
        if expired.is_set():
            raise UsageError(
                f"The statement was stopped after {timeout_seconds:g} s.", "Ask for less, or allow more time."
            ) from error
        raise UsageError(_cleaned(error), "`gradtrail sql --schema` lists tables and columns.") from error
    finally:
        timer.cancel()
        timer.join()


def _cleaned(error: Exception) -> str:
    lines = [line.strip() for line in str(error).strip().splitlines()]
    text = " ".join(line for line in lines if line and not line.startswith(("LINE ", "^")))
    return text if text.endswith((".", "?", "!")) else text + "."
