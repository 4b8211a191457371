"""What audits of the same model found before: the shares that a new one is held against."""

from __future__ import annotations

from collections.abc import Sequence

import duckdb

from gradtrail.lineage.schema.nouns import noun_of, select
from gradtrail.nouns import Share, Target


def earlier_shares(
    connection: duckdb.DuckDBPyConnection,
    model_name: str,
    method: str,
    target: Target,
    output_ids: Sequence[str],
    limit: int,
) -> list[tuple[str, tuple[Share, ...]]]:
    """Id and shares over all outputs of the last audits of a model, of any of its versions, the newest first.

    Only audits by the same method and of the same target: others are on another scale. And only those from before one
    of `output_ids` was first audited so: an audit that is repeated is held against the same history again.
    """
    audits = """
        SELECT audit.audit_id FROM audit JOIN model_version USING (model_version_id)
        WHERE model_version.name = ? AND audit.method = ?
            AND EXISTS (SELECT 1 FROM audit_output WHERE audit_output.audit_id = audit.audit_id AND target = ?)
            AND audit.event_sequence < coalesce((
                SELECT min(same.event_sequence) FROM audit AS same JOIN audit_output USING (audit_id)
                WHERE same.method = ? AND target = ? AND output_id IN (SELECT unnest(?))), 9223372036854775807)
        ORDER BY audit.event_sequence DESC LIMIT ?"""
    shares = select(Share, "FROM share WHERE audit_id = ? AND output_id IS NULL ORDER BY position")
    found = connection.execute(audits, [model_name, method, target, method, target, list(output_ids), limit]).fetchall()
    return [
        (audit_id, tuple(noun_of(Share, row) for row in connection.execute(shares, [audit_id]).fetchall()))
        for (audit_id,) in found
    ]
