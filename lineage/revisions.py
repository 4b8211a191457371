"""Files that were written again after they were recorded: the digests that hold since, with the reason."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import duckdb

from gradtrail.lineage.append import append
from gradtrail.lineage.connections import first_row
from gradtrail.lineage.ledger import Ledger
from gradtrail.lineage.rows import rows_of

FileKind = Literal["report", "manifest"]


def current_digests(connection: duckdb.DuckDBPyConnection, kind: FileKind, subject_id: str) -> dict[str, str] | None:
    """Digest by file name after the latest rewriting; None where there was none."""
    query = "SELECT file_sha256 FROM file_revision WHERE kind = ? AND subject_id = ? ORDER BY revision DESC LIMIT 1"
    row = first_row(connection, query, [kind, subject_id])
    return dict(row[0]) if row else None


def record_revision(
    ledger: Ledger, kind: FileKind, subject_id: str, file_sha256: Mapping[str, str], reason: str
) -> bool:
    """Record that files were written again; False where these digests hold already."""
    with ledger.transaction() as connection:
        if current_digests(connection, kind, subject_id) == dict(file_sha256):
            return False
        query = "SELECT count(*) FROM file_revision WHERE kind = ? AND subject_id = ?"
        row = first_row(connection, query, [kind, subject_id])
        record = (kind, subject_id, (row[0] if row else 0) + 1, dict(file_sha256), reason)
        append(connection, "file_revision", subject_id, [rows_of("file_revision", [record])])
        return True
