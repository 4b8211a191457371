"""Recording what was made again, files and indexes: the digests that hold since, with the reason."""

from __future__ import annotations

from collections.abc import Mapping

from gradtrail.errors import LedgerError
from gradtrail.lineage.chain.appending import append
from gradtrail.lineage.chain.rows import rows_of
from gradtrail.lineage.connections import first_row
from gradtrail.lineage.ledger.writing import Ledger
from gradtrail.lineage.read.catalogue import index
from gradtrail.lineage.read.revisions import FileKind, current_digests
from gradtrail.nouns import Index


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


def record_index_revision(ledger: Ledger, measured: Index, reason: str) -> bool:
    """Record that an index was measured again; False where what it holds now is recorded already.

    Raises:
        LedgerError: it was never recorded, or holds other examples than when it was.
    """
    with ledger.transaction() as connection:
        recorded = index(connection, measured.index_id)
        if recorded is None or _examples(recorded) != _examples(measured):
            raise LedgerError(
                f"Index {measured.index_id} does not hold the examples that the ledger recorded of it.",
                "Build another one beside it, as with --seed 1, and calibrate on that.",
            )
        if (recorded.table_version, recorded.rows_sha256) == (measured.table_version, measured.rows_sha256):
            return False
        row = first_row(connection, "SELECT count(*) FROM index_revision WHERE index_id = ?", [measured.index_id])
        record = (measured.index_id, row[0] + 1 if row else 1, measured.table_version, measured.rows_sha256, reason)
        append(connection, "index_revision", measured.index_id, [rows_of("index_revision", [record])])
        return True


def _examples(index: Index) -> tuple[int, int, set[str]]:
    coverage = index.coverage
    return coverage.indexed_examples, coverage.total_examples, set(coverage.quarantined)
