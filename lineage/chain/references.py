"""What a new row refers to must be recorded: DuckDB's foreign keys cost too much at a million rows."""

from __future__ import annotations

from collections.abc import Sequence

import duckdb

from gradtrail.errors import DataError, LedgerError
from gradtrail.lineage.chain.appending import unrecorded
from gradtrail.lineage.connections import first_row
from gradtrail.nouns import Audit


def require(connection: duckdb.DuckDBPyConnection, table: str, column: str, values: Sequence[str]) -> None:
    """Refuse to go on where a row that is referred to is missing.

    Raises:
        LedgerError: names the first value that no row has.
    """
    if missing := unrecorded(connection, table, column, values):
        raise LedgerError(
            f"{table.replace('_', ' ')} {missing[0]} is not in the ledger.",
            "Record it first; `gradtrail ingest` and `gradtrail index` do so.",
        )


def require_audited(connection: duckdb.DuckDBPyConnection, audit: Audit, example_ids: set[str]) -> None:
    """Refuse an audit that names what is not recorded.

    Raises:
        LedgerError: a model version, weighting, index, output or example is missing.
        DataError: its indexes are over different dataset versions.
    """
    require(connection, "model_version", "model_version_id", [audit.model_version_id])
    require(connection, "weighting", "weighting_id", [audit.weighting_id])
    require(connection, "gradient_index", "index_id", audit.index_ids)
    require(connection, "output", "output_id", [output_id for output_id, _ in audit.outputs])
    found = connection.execute(
        "SELECT DISTINCT dataset_version_id FROM gradient_index WHERE index_id IN (SELECT unnest(?))",
        [list(audit.index_ids)],
    ).fetchall()
    if len(found) != 1:
        raise DataError(
            f"Audit {audit.audit_id} scores against indexes over {len(found)} dataset versions.",
            "Use at least one index, all over one dataset version.",
        )
    query = """
        SELECT given FROM (SELECT unnest(?) AS given)
        ANTI JOIN (SELECT example_id FROM example WHERE dataset_version_id = ?) ON example_id = given
        ORDER BY given LIMIT 1"""
    stranger = first_row(connection, query, [sorted(example_ids), found[0][0]]) if example_ids else None
    if stranger:
        raise LedgerError(
            f"Example {stranger[0]} is not in dataset version {found[0][0]}, which the audit scored against.",
            "Rebuild the index from the recorded manifest.",
        )
