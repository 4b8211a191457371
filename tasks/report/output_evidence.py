"""What an audit found about each of its outputs, put together once for all of them."""

from __future__ import annotations

from dataclasses import dataclass, field

from gradtrail.lineage.read.answers import AuditDetails
from gradtrail.nouns import Attribution, Finding, GroupContribution, OutputResult, Share, Target


@dataclass
class OutputEvidence:
    """What an audit found about one output."""

    target: Target
    result: OutputResult
    attributions: list[Attribution] = field(default_factory=list)
    shares: list[Share] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    groups: list[GroupContribution] = field(default_factory=list)


def evidence_by_output(details: AuditDetails) -> dict[str, OutputEvidence]:
    """The evidence of an audit, gathered in one pass over each kind of it."""
    results = {result.output_id: result for result in details.results}
    found = {output_id: OutputEvidence(target, results[output_id]) for output_id, target in details.audit.outputs}
    for attribution in details.attributions:
        found[attribution.output_id].attributions.append(attribution)
    for share in details.shares:
        if share.output_id is not None:
            found[share.output_id].shares.append(share)
    for finding in details.findings:
        if finding.output_id is not None:
            found[finding.output_id].findings.append(finding)
    for part in details.group_contributions:
        if part.output_id is not None:
            found[part.output_id].groups.append(part)
    return found
