"""Names of the pages that gradtrail writes, and of places in them: links and pages have to agree on both."""

from __future__ import annotations

from gradtrail.digests import sha256_bytes

REPORT_PAGE = "report.html"
INDEX_PAGE = "index.html"
COMPARISONS = "comparisons"


def output_anchor(output_id: str) -> str:
    """The fragment of an output's own section in a report; output ids may hold what an address may not."""
    return f"output-{sha256_bytes(output_id.encode('utf-8'))[:16]}"
