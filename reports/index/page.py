"""The index of all reports: one page that loads nothing, reads without its script, and searches with it."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from markupsafe import Markup

from gradtrail import __version__
from gradtrail.digests import short
from gradtrail.nouns import SEVERITIES, Severity
from gradtrail.reports.formats import moment, number, percent, printable
from gradtrail.reports.index import charts as index_charts
from gradtrail.reports.index.charts import Chart, fidelity_chart, findings_chart, share_chart
from gradtrail.reports.index.model import IndexedAudit
from gradtrail.reports.index.parts import IndexPart
from gradtrail.reports.render import environment

MOST_DRAWN = 60
"""Audits that the charts of a model draw, the newest; the table has all."""
MOST_SHARES = 100
_TEMPLATES = Path(__file__).parents[1] / "templates"


@dataclass(frozen=True)
class ShownAudit:
    """One row: an audit and the worst severity of its findings, None where it has none."""

    audit: IndexedAudit
    worst: Severity | None
    counts: tuple[tuple[Severity, int], ...]


@dataclass(frozen=True)
class ShownModel:
    """One model: its audits, the newest first, and its charts with their titles."""

    name: str
    address: str
    versions: tuple[int, ...]
    audits: tuple[ShownAudit, ...]
    drawn: tuple[IndexedAudit, ...]
    charts: tuple[tuple[str, Chart | None], ...]


def index_page(
    audits: Sequence[IndexedAudit],
    part: IndexPart | None = None,
    others: Sequence[tuple[IndexPart, str]] = (),
    newest_at: str = "",
) -> str:
    """The index over these audits, given in the order they were recorded; every text is escaped.

    The page may run its own script alone: its digest is in the page's content security policy.

    Args:
        audits: those that the page shows.
        part: which of all audits they are, where they are not all.
        others: the pages of older audits with their addresses.
        newest_at: address of the index, on a page of older audits.
    """
    script = (_TEMPLATES / "index.js").read_text(encoding="utf-8")
    page = environment().get_template("index.html")
    return page.render(
        models=_models(audits),
        newest=audits[-1] if audits else None,
        total=part.last if part and not newest_at else len(audits),
        part=part,
        others=others,
        newest_at=newest_at,
        compared={audit.past.audit_id: _compared(audit) for audit in audits},
        severities=SEVERITIES,
        canvas=index_charts,
        # The package's own file.
        script=Markup(script),  # noqa: S704
        script_digest=base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii"),
        version=__version__,
    )


def _models(audits: Sequence[IndexedAudit]) -> list[ShownModel]:
    """The models, that with the newest audit first."""
    by_model = sorted(audits, key=lambda audit: (audit.past.model, audit.past.number))
    shown = []
    for name, group in groupby(by_model, key=lambda audit: audit.past.model):
        of_model = list(group)
        drawn = of_model[-MOST_DRAWN:]
        charts: list[tuple[str, Chart | None]] = [
            ("Findings", findings_chart(drawn)),
            ("Fidelity", fidelity_chart(drawn)),
            ("Support by source", share_chart(drawn, "source")),
            ("Support by licence", share_chart(drawn, "licence")),
        ]
        shown.append(
            ShownModel(
                name,
                of_model[-1].links.get("model", ""),
                tuple(sorted({audit.past.version for audit in of_model})),
                tuple(_shown(audit) for audit in reversed(of_model)),
                tuple(drawn),
                tuple(charts),
            )
        )
    return sorted(shown, key=lambda model: -model.drawn[-1].past.event_sequence)


def _shown(audit: IndexedAudit) -> ShownAudit:
    counts = tuple((severity, audit.past.findings(severity)) for severity in SEVERITIES)
    found = tuple((severity, count) for severity, count in counts if count)
    return ShownAudit(audit, found[0][0] if found else None, found)


def _compared(audit: IndexedAudit) -> dict[str, Any]:
    """What the page's script puts side by side, as plain values."""
    past, fidelity = audit.past, audit.fidelity
    shares = sorted(past.shares, key=lambda share: -share.share)[:MOST_SHARES]
    facts = {
        "Recorded": moment(past.recorded_at),
        "Model version": f"{past.model}, version {past.version}",
        "Method": past.method,
        "Parameters": ", ".join(f"{name} {value}" for name, value in sorted(past.parameters.items())),
        "Weighting": short(past.weighting_id),
        "Dataset version": short(past.dataset_version_id),
        "Outputs": str(past.outputs),
        "Not reproduced": str(past.not_reproduced),
        "Parameters covered": percent(past.parameter_share),
        "Examples covered": percent(past.example_share),
        "Fidelity": f"{number(fidelity.value)} ± {number(fidelity.standard_error, 2)}" if fidelity else "not measured",
    }
    return {
        "name": printable(f"{past.model}, audit {past.number} ({short(past.audit_id)})"),
        "report": audit.report,
        "place": past.event_sequence,
        "facts": {name: printable(text) for name, text in facts.items()},
        "shares": {
            printable(
                f"{'support' if s.side == 'proponent' else 'opposition'}, {s.attribute} {s.value or '(none)'}"
            ): s.share
            for s in shares
        },
        "findings": {
            printable(f"{rule.severity} · {rule.rule}"): [rule.count, printable(rule.message)] for rule in past.fired
        },
    }
