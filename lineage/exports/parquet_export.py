"""The whole snapshot as Parquet, one file a table or view, for tools that do not read DuckDB.

The files are written into a hidden folder beside the destination, which takes its place when all are there.
"""

from __future__ import annotations

import json
import secrets
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import duckdb

from gradtrail.errors import LedgerError, UsageError
from gradtrail.lineage.chain.appending import head
from gradtrail.lineage.connections import first_line
from gradtrail.lineage.ledger.migrations import version_of
from gradtrail.lineage.schema.statements import statement

CONTENTS = "export.json"
"""Names the event the export ends at, and the rows of each file. A folder without it is somebody else's."""


@dataclass(frozen=True)
class ParquetExport:
    """What was exported: the ledger's version and last event, and the number of rows by file."""

    folder: str
    schema_version: int
    head_sequence: int
    head_hash: str
    rows: dict[str, int]


def export_parquet(connection: duckdb.DuckDBPyConnection, folder: Path) -> ParquetExport:
    """Write every table and view as `<name>.parquet`; replaces an earlier export in the same place.

    Raises:
        UsageError: the folder holds other things.
        LedgerError: a file cannot be written, for example because the disk is full. What was there before stays.
    """
    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not (folder / CONTENTS).is_file())):
        raise UsageError(f"{folder} holds something that is not an export.", "Choose another folder, or an empty one.")
    token = secrets.token_hex(8)
    part = folder.with_name(f".{folder.name[:80]}.{token}.tmp")
    old = folder.with_name(f".{folder.name[:80]}.{token}.old.tmp")
    try:
        part.mkdir(parents=True)
        sequence, event_hash = head(connection)
        rows = {name: _write(connection, name, part / f"{name}.parquet") for name in _relations(connection)}
        written = ParquetExport(str(folder), version_of(connection), sequence, event_hash, rows)
        (part / CONTENTS).write_text(json.dumps(asdict(written), indent=2) + "\n", "utf-8")
        if folder.exists():
            folder.rename(old)
        part.rename(folder)
    except (duckdb.Error, OSError) as error:
        if old.exists() and not folder.exists():
            old.rename(folder)
        cause = first_line(error) if isinstance(error, duckdb.Error) else str(error)
        raise LedgerError(
            f"The export to {folder} failed and left nothing: {cause}.",
            "Check that the disk has room and the folder can be written, then try again.",
        ) from error
    finally:
        for leftover in (part, old):
            shutil.rmtree(leftover, ignore_errors=True)
    return written


def _relations(connection: duckdb.DuckDBPyConnection) -> list[str]:
    query = """
        SELECT table_name FROM duckdb_tables() WHERE database_name = 'ledger' AND table_name <> 'refusal'
        UNION ALL SELECT view_name FROM duckdb_views() WHERE database_name = 'ledger' AND NOT internal
        ORDER BY 1"""
    return [row[0] for row in connection.execute(query).fetchall()]


def _write(connection: duckdb.DuckDBPyConnection, name: str, path: Path) -> int:
    quoted = str(path).replace("'", "''")
    copy = statement("COPY (FROM $name) TO ", name=name) + f"'{quoted}' (FORMAT parquet, COMPRESSION zstd)"
    return int(connection.execute(copy).fetchall()[0][0])
