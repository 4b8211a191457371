"""Two audits side by side as one HTML page without scripts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gradtrail import __version__
from gradtrail.lineage.read.comparisons import Compared
from gradtrail.nouns import SEVERITIES, Finding, Share, Side
from gradtrail.reports.index.model import IndexedAudit
from gradtrail.reports.render import environment

Subject = tuple[str, str | None, tuple[str, ...]]
"""What a finding is about."""


@dataclass(frozen=True)
class ComparedShare:
    """A share in both audits; 0 where an audit does not have the value. `change` is the second minus the first."""

    side: Side
    attribute: str
    value: str
    first: float
    second: float

    @property
    def change(self) -> float:
        """Growth of the share, as a part of 1."""
        return self.second - self.first


@dataclass(frozen=True)
class FindingChange:
    """Findings of only the second audit (`came`), only the first (`went`), or both (`stayed`, as the second has it)."""

    came: tuple[Finding, ...]
    went: tuple[Finding, ...]
    stayed: tuple[Finding, ...]


def compare_page(
    first: IndexedAudit,
    second: IndexedAudit,
    lines: Sequence[Compared],
    first_findings: Sequence[Finding],
    second_findings: Sequence[Finding],
) -> str:
    """A page with method, fidelity, outputs, shares and findings of two audits; nothing is fetched, text is escaped.

    Args:
        first: the earlier audit.
        second: the later one.
        lines: the ledger's comparison of the two, in that order.
        first_findings: what the earlier found.
        second_findings: what the later found.
    """
    page = environment().get_template("compare.html")
    return page.render(
        first=first,
        second=second,
        lines=[line for line in lines if line.aspect in ("method", "outputs")],
        shares=compared_shares(first.past.shares, second.past.shares),
        findings=changed_findings(first_findings, second_findings),
        version=__version__,
    )


def compared_shares(first: Sequence[Share], second: Sequence[Share]) -> list[ComparedShare]:
    """Shares of both audits by side and attribute, the largest change first."""

    def by_value(shares: Sequence[Share]) -> dict[tuple[Side, str, str], float]:
        return {(share.side, share.attribute, share.value): share.share for share in shares}

    before, after = by_value(first), by_value(second)
    found = [ComparedShare(*key, before.get(key, 0.0), after.get(key, 0.0)) for key in {**before, **after}]
    return sorted(
        found, key=lambda share: (share.side != "proponent", -abs(share.change), share.attribute, share.value)
    )


def changed_findings(first: Sequence[Finding], second: Sequence[Finding]) -> FindingChange:
    """Findings that came, went and stayed; the same rule about the same subject is the same finding."""
    before, after = {_subject(each) for each in first}, {_subject(each) for each in second}

    def chosen(findings: Sequence[Finding], subjects: set[Subject]) -> tuple[Finding, ...]:
        found = [finding for finding in findings if _subject(finding) in subjects]
        return tuple(sorted(found, key=lambda finding: SEVERITIES.index(finding.severity)))

    return FindingChange(chosen(second, after - before), chosen(first, before - after), chosen(second, after & before))


def _subject(finding: Finding) -> Subject:
    """The rule, its output, and what the evidence names; its figures differ from audit to audit."""
    named = tuple(str(finding.evidence.get(name, "")) for name in ("attribute", "value", "side", "example_id"))
    return (finding.rule, finding.output_id, named)
