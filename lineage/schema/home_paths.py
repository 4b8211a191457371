"""Paths in the ledger: a file below the home folder is recorded relative to it, so that a home can be moved whole.

Before version 13 of the ledger absolute paths were recorded. Nothing in a ledger is ever changed, so these are read by
their ends: manifests, checkpoints and reports have always lain in folders of these names in the home folder.
"""

from __future__ import annotations

import re
from pathlib import Path

import duckdb

_DEPTHS = {"manifests": 1, "checkpoints": 1, "reports": 2, "gradients": 1}
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*:", re.IGNORECASE)


def to_record(location: str, home: Path) -> str:
    """A path below the home folder relative to it; any other location as it is."""
    path = Path(location)
    return path.relative_to(home).as_posix() if path.is_absolute() and path.is_relative_to(home) else location


def to_read(location: str, home: Path | None) -> str:
    """Where a recorded location is now: absolute, unless it is a URI."""
    if home is None or _SCHEME.match(location):
        return location
    path = Path(location)
    if not path.is_absolute():
        return str(home / path)
    for folder, depth in _DEPTHS.items():
        if path.parts[-depth - 1 : -depth] == (folder,) and not (folder == "gradients" and path.exists()):
            return str(home.joinpath(*path.parts[-depth - 1 :]))
    return location


def home_of(connection: duckdb.DuckDBPyConnection) -> Path | None:
    """The home folder whose ledger or snapshot is open: the one that holds it; None for a database in memory."""
    query = "SELECT path FROM duckdb_databases() WHERE database_name = current_database()"
    (path,) = connection.execute(query).fetchall()[0]
    return Path(path).resolve().parent if path else None
