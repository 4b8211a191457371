"""Writing the ledger file anew, so that deleted rows leave no byte behind.

DuckDB marks deleted rows and frees their blocks, but the bytes stay in the file. So everything that is left is copied
into a fresh file, made from the same schema files, which then takes the old one's place. The lock on the old file is
held until then; who waited for it notices that the file is another one and opens that.
"""

from __future__ import annotations

import os
from pathlib import Path

from gradtrail.lineage.connections import marked, open_database
from gradtrail.lineage.engines import BLOCK_BYTES, LEDGER
from gradtrail.lineage.ledger.migrations import version_of
from gradtrail.lineage.ledger.writing import Ledger
from gradtrail.lineage.schema.files import create_schema
from gradtrail.lineage.schema.statements import statement

_FRESH = "fresh"


def rewrite_database(ledger: Ledger) -> None:
    """Copy the ledger into a fresh file and put that in its place, by rename.

    Needs the size of the ledger free on its disk.

    Raises:
        LedgerError: somebody else holds the ledger.
    """
    database = ledger.paths.database
    part = database.with_name(database.name + ".rewrite")
    with (
        ledger.exclusive(),
        marked(database) as mark,
        open_database(database, read_only=False, patience_seconds=ledger.patience_seconds) as connection,
    ):
        mark.touch()
        _remove(part)
        connection.execute("CHECKPOINT")
        tables = [each[0] for each in connection.execute("SELECT table_name FROM duckdb_tables()").fetchall()]
        version = version_of(connection)
        quoted = str(part).replace("'", "''")
        connection.execute(f"ATTACH '{quoted}' AS {_FRESH} (BLOCK_SIZE {BLOCK_BYTES})")
        connection.execute(f"USE {_FRESH}")
        create_schema(connection, version)
        for name in tables:
            template = "INSERT INTO $fresh.$table BY NAME SELECT * FROM $old.$table"
            connection.execute(statement(template, fresh=_FRESH, table=name, old=LEDGER))
        connection.execute(f"USE {LEDGER}")
        connection.execute(f"DETACH {_FRESH}")
        _flush(part)
        part.replace(database)
        _flush(database.parent)


def _remove(part: Path) -> None:
    part.unlink(missing_ok=True)
    part.with_name(part.name + ".wal").unlink(missing_ok=True)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
