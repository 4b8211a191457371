"""What the report index and comparisons show of an audit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from gradtrail.lineage.read.audit_history import PastAudit
from gradtrail.nouns import Fidelity


@dataclass(frozen=True)
class IndexedAudit:
    """An audit of the past with the fidelity measured before it, None where none was.

    `report` is the address of its report, relative to the index or whole; `links` maps what else can be opened to web
    addresses.
    """

    past: PastAudit
    fidelity: Fidelity | None
    report: str = ""
    links: Mapping[str, str] = field(default_factory=dict)
