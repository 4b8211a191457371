"""Verdicts on audits: whether what a run found lets a pipeline go on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from gradtrail.digests import short
from gradtrail.errors import FindingsError
from gradtrail.lineage.read import queries
from gradtrail.nouns import Severity
from gradtrail.reports.formats import plural
from gradtrail.reports.verdicts import AuditVerdict, junit_xml, stops, verdict_document
from gradtrail.storage.files.atomic import write_atomically
from gradtrail.tasks.core.policies import workspace_policy
from gradtrail.tasks.core.workspace import Workspace


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
        )
        for each in found
    ]


def write_verdicts(audits: Sequence[AuditVerdict], fail_on: Severity, path: Path) -> None:
    """Write JUnit XML to `path`, and the same as JSON beside it, with the ending .json."""
    document = verdict_document(audits, fail_on)
    write_atomically(path, junit_xml(document))
    write_atomically(path.with_suffix(".json"), json.dumps(document, indent=2, ensure_ascii=False).encode())


def require_pass(audits: Sequence[AuditVerdict], fail_on: Severity) -> None:
    """Refuse to go on where an audit has a finding of `fail_on` or higher.

    Raises:
        FindingsError: names the first of the most severe findings, and how many there are.
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
