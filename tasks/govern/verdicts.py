"""Verdicts on audits: whether what a run found lets a pipeline go on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from gradtrail.digests import short
from gradtrail.errors import FindingsError, UnjudgedError
from gradtrail.lineage.read import queries
from gradtrail.nouns import Severity, Target
from gradtrail.reports.formats import plural
from gradtrail.reports.verdicts import AuditVerdict, junit_xml, stops, verdict_document
from gradtrail.storage.files.atomic import write_atomically
from gradtrail.tasks.core.policies import workspace_policy
from gradtrail.tasks.core.workspace import Workspace
from gradtrail.tasks.govern.judged import Given, given_last, unjudged_fault


class JudgedRun(Protocol):
    """What a verdict needs of a run of the flow `audit`."""

    @property
    def model_version_id(self) -> str:
        """The version that was asked for."""

    @property
    def made(self) -> tuple[str, ...]:
        """Audits that the run made or completed."""

    @property
    def given(self) -> Given:
        """Outputs that the run was given."""


@dataclass(frozen=True)
class RunVerdict:
    """The audits of a run, the outputs it was `given`, and the `fault` of a gate that judged too few of them."""

    model_version_id: str
    audits: tuple[AuditVerdict, ...]
    given: Given
    fault: UnjudgedError | None


def audit_verdicts(workspace: Workspace, model_version_id: str, audit_ids: Sequence[str]) -> list[AuditVerdict]:
    """The audits that a run made or finished; where it had nothing to do, those of the run before it.

    Otherwise a pipeline that is started again after it was stopped would pass, for its outputs are audited by then.
    """
    policy = workspace_policy(workspace)
    with workspace.ledger().read() as connection:
        judged = audit_ids or queries.newest_audits(connection, model_version_id)
        found = [queries.audit_details(connection, audit_id) for audit_id in judged]
    return [
        AuditVerdict(
            each.audit.audit_id,
            each.audit.model_version_id,
            each.recorded_at,
            # The ledger keeps the digest of a policy and not its text: the rules are named while they are the same.
            tuple(rule.name for rule in policy.rules) if policy.sha256 == each.audit.policy_sha256 else (),
            each.findings,
            len(each.audit.outputs),
        )
        for each in found
    ]


def judge_run(
    workspace: Workspace, outcome: JudgedRun, target: Target, most_unjudged: float = 0.0, least_outputs: int = 0
) -> RunVerdict:
    """What a run found, and why it cannot be a gate where it judged too little of what it was given.

    Args:
        workspace: where the ledger is.
        outcome: what the flow `audit` returned.
        target: what was measured of the outputs.
        most_unjudged: share of the outputs that may be left unjudged.
        least_outputs: how many outputs have to be judged at least.
    """
    audits = audit_verdicts(workspace, outcome.model_version_id, outcome.made)
    given = outcome.given
    if not given.is_new:
        judged = sum(audit.outputs for audit in audits)
        given = given_last(workspace, outcome.model_version_id, target, judged, given)
    return RunVerdict(
        outcome.model_version_id, tuple(audits), given, unjudged_fault(given, most_unjudged, least_outputs)
    )


def write_verdicts(verdict: RunVerdict, fail_on: Severity, path: Path) -> None:
    """Write JUnit XML to `path`, and the same as JSON beside it, with the ending .json."""
    document = verdict_document(
        verdict.audits,
        fail_on,
        unjudged=verdict.fault.what if verdict.fault else "",
        model_version_id=verdict.model_version_id,
    )
    given = verdict.given
    document["outputs"] = {
        "judged": given.judged,
        "unjudged": dict(given.unjudged),
        "sampled_out": given.sampled_out,
    }
    write_atomically(path, junit_xml(document))
    write_atomically(path.with_suffix(".json"), json.dumps(document, indent=2, ensure_ascii=False).encode())


def require_pass(audits: Sequence[AuditVerdict], fail_on: Severity, unjudged: UnjudgedError | None = None) -> None:
    """Refuse to go on where an audit has a finding of `fail_on` or higher, or too little was judged.

    Raises:
        FindingsError: names the first of the most severe findings, and how many there are.
        UnjudgedError: no audit has such a finding, but too many outputs have no audit.
    """
    found = [(audit, finding) for audit in audits for finding in audit.findings if stops(finding, fail_on)]
    if found:
        audit, worst = found[0]
        number = plural(len(found), "finding")
        raise FindingsError(
            f"Audit {short(audit.audit_id)} of {audit.model_version_id} has {number} of severity "
            f"{fail_on} or higher, for example {worst.rule} ({worst.severity}): {worst.message}",
            f"Read its report: gradtrail report {short(audit.audit_id)}.",
        )
    if unjudged is not None:
        raise unjudged
