"""What was made again after it was recorded, read back: files and indexes, with the digests that hold since."""

from __future__ import annotations

from typing import Literal

import duckdb

from gradtrail.lineage.connections import first_row

FileKind = Literal["report", "manifest"]


def current_digests(connection: duckdb.DuckDBPyConnection, kind: FileKind, subject_id: str) -> dict[str, str] | None:
    """Digest by file name after the latest rewriting; None where there was none."""
    query = "SELECT file_sha256 FROM file_revision WHERE kind = ? AND subject_id = ? ORDER BY revision DESC LIMIT 1"
    row = first_row(connection, query, [kind, subject_id])
    return dict(row[0]) if row else None


def index_revisions(connection: duckdb.DuckDBPyConnection) -> list[tuple[str, int, str]]:
    """Indexes that were measured again, each time with the event that says so and the reason."""
    query = "SELECT index_id, event_sequence, reason FROM index_revision ORDER BY event_sequence"
    return connection.execute(query).fetchall()
