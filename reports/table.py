"""The attributions of a report as an Arrow table, for Parquet and for whoever continues in SQL or pandas."""

from __future__ import annotations

from operator import attrgetter
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

_OF_A_CARD = ("example_id", "content_sha256", "side", "rank", "score", "share")
KNOWN_LABELS, WRONG_OUTPUTS = b"gradtrail.known_labels", b"gradtrail.wrong_outputs"
"""Names in the metadata of the file."""


def attribution_table(report: AuditReport) -> pa.Table:
    """One row per output, side and rank, outputs as the report holds them; see `ATTRIBUTION_SCHEMA`.

    Its metadata says of how many outputs it is known whether they are right, and how many are wrong.
    """
    sections = [(section, (*section.proponents, *section.opponents)) for section in report.outputs]
    cards = [card for _, shown in sections for card in shown]
    # Cards of one example share its attributes.
    attributes = {id(card.attributes): card.attributes for card in cards}
    in_order = {place: sorted(values.items()) for place, values in attributes.items()}
    columns: dict[str, Any] = {
        "audit_id": pa.repeat(report.audit.audit_id, len(cards)),
        "model_version_id": pa.repeat(report.model_version.model_version_id, len(cards)),
        "output_id": [section.output.output_id for section, shown in sections for _ in shown],
        "target": [section.output.target for section, shown in sections for _ in shown],
        **{name: list(map(attrgetter(name), cards)) for name in _OF_A_CARD},
        "attributes": [in_order[id(card.attributes)] for card in cards],
    }
    known = [section.wrong for section in report.outputs if section.judged]
    counts = {KNOWN_LABELS: b"%d" % len(known), WRONG_OUTPUTS: b"%d" % sum(known)}
    schema = ATTRIBUTION_SCHEMA.with_metadata({**ATTRIBUTION_SCHEMA.metadata, **counts})
    return pa.Table.from_pydict(columns, schema=schema)
