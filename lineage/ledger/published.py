"""Reading the published snapshot: all that questions about the past need, without what writes the ledger."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import duckdb

from gradtrail.errors import LedgerError
from gradtrail.lineage.ledger.definitions import open_known_snapshot
from gradtrail.lineage.ledger.migrations import is_current


def read_published(snapshot: Path, publish: Callable[[], object]) -> duckdb.DuckDBPyConnection:
    """A read-only connection on the published snapshot; the caller closes it.

    Args:
        snapshot: the snapshot's file.
        publish: publishes it anew; called first where an older gradtrail published it.

    Raises:
        NotFoundError: nothing was published yet.
        LedgerError: the file is damaged, or was written by a newer gradtrail.
    """
    connection = open_known_snapshot(snapshot)
    try:
        current = is_current(connection)
    except LedgerError:
        connection.close()
        raise
    if current:
        return connection
    connection.close()
    publish()
    return open_known_snapshot(snapshot)
