"""The attributions of a report as an Arrow table, for Parquet and for whoever continues in SQL or pandas."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from gradtrail.reports.model import AuditReport

ATTRIBUTION_SCHEMA = pa.schema(
    [
        pa.field("audit_id", pa.string(), nullable=False),
        pa.field("model_version_id", pa.string(), nullable=False),
        pa.field("output_id", pa.string(), nullable=False),
        pa.field("target", pa.string(), nullable=False),
        pa.field("example_id", pa.string(), nullable=False),
        pa.field("content_sha256", pa.string(), nullable=False),
        pa.field("side", pa.string(), nullable=False),
        pa.field("rank", pa.int32(), nullable=False),
        pa.field("score", pa.float64()),
        pa.field("share", pa.float64()),
        pa.field("attributes", pa.map_(pa.string(), pa.string()), nullable=False),
    ],
    metadata={b"gradtrail.schema": b"gradtrail.attributions/1"},
)


def attribution_table(report: AuditReport) -> pa.Table:
    """One row per output, side and rank, outputs as the report holds them; see `ATTRIBUTION_SCHEMA`."""
    rows: list[dict[str, Any]] = [
        {
            "audit_id": report.audit.audit_id,
            "model_version_id": report.model_version.model_version_id,
            "output_id": section.output.output_id,
            "target": section.output.target,
            "example_id": card.example_id,
            "content_sha256": card.content_sha256,
            "side": card.side,
            "rank": card.rank,
            "score": card.score,
            "share": card.share,
            "attributes": sorted(card.attributes.items()),
        }
        for section in report.outputs
        for card in (*section.proponents, *section.opponents)
    ]
    return pa.Table.from_pylist(rows, schema=ATTRIBUTION_SCHEMA)
