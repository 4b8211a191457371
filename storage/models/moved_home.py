"""MLflow's embedded database after its home folder was moved: it has absolute paths, and no call to change them."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import unquote, urlsplit

from gradtrail.errors import StoreError

_PATIENCE_SECONDS = 60.0
_PLACES = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
    ("trace_tags", "value"),
    ("datasets", "dataset_source"),
)
"""Where MLflow keeps the location of a file, as a URI, as a path, or as either within JSON."""


def follow_moved_home(database: Path, artifact_root: Path) -> bool:
    """Lead an embedded MLflow to the files of its home folder; True where it was moved since MLflow wrote them down.

    A home was moved where an experiment has another folder for its artifacts, of the same name, and those of one of its
    runs lie in this one all the same. Every location below the old home folder then becomes one below the new.

    Raises:
        StoreError: the database cannot be written.
    """
    if not database.is_file():
        return False
    try:
        with closing(sqlite3.connect(database, timeout=_PATIENCE_SECONDS)) as connection:
            before = _homes_before(connection, artifact_root)
            for home in before:
                with connection:
                    _replace_home(connection, home, artifact_root.parent)
    except sqlite3.Error as fault:
        raise StoreError(
            f"The home folder was moved to {artifact_root.parent}, and its MLflow cannot be told so: {fault}.",
            f"See that {database} can be written, and that nothing else holds it.",
        ) from fault
    return bool(before)


def _homes_before(connection: sqlite3.Connection, artifact_root: Path) -> list[Path]:
    if not _columns(connection, "experiments"):
        return []
    found = []
    for (location,) in connection.execute("SELECT DISTINCT artifact_location FROM experiments").fetchall():
        folder = _local_path(location or "")
        if folder is None or folder == artifact_root or folder.name != artifact_root.name:
            continue
        query = "SELECT run_uuid FROM runs JOIN experiments USING (experiment_id) WHERE artifact_location = ?"
        if any((artifact_root / run_id).is_dir() for (run_id,) in connection.execute(query, [location])):
            found.append(folder.parent)
    return found


def _replace_home(connection: sqlite3.Connection, before: Path, now: Path) -> None:
    for table, column in _PLACES:
        if column not in _columns(connection, table):
            continue
        for old, new in ((f"{before.as_uri()}/", f"{now.as_uri()}/"), (f"{before}/", f"{now}/")):
            connection.execute(
                f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE substr({column}, 1, ?) = ?",  # noqa: S608
                [new, len(old) + 1, len(old), old],
            )
            connection.execute(
                f"UPDATE {table} SET {column} = replace({column}, ?, ?) WHERE substr({column}, 1, 1) = '{{'",  # noqa: S608
                [f'"{old}', f'"{new}'],
            )


def _columns(connection: sqlite3.Connection, table: str) -> set[str]:
    return {row[1] for row in connection.execute(f"PRAGMA table_info({table})")}


def _local_path(location: str) -> Path | None:
    parts = urlsplit(location)
    if parts.scheme not in {"", "file"} or parts.netloc:
        return None
    return Path(unquote(parts.path))
