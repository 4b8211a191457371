"""Showing an audit on Prefect's own pages: a summary, its findings as a table, and a link to the report."""

from __future__ import annotations

import re

from prefect import task
from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE

from gradtrail.digests import short
from gradtrail.lineage.read.answers import AuditDetails
from gradtrail.storage.models.audit_runs import markdown_text
from gradtrail.tasks.report.reported_audits import ShownAudit


@task(cache_policy=NO_CACHE)
def show_audit(shown: ShownAudit) -> None:
    """Put a linked audit beside its flow run; each model keeps one series of artifacts, so that its history shows."""
    audit_id, details = shown.audit_id, shown.recorded.details
    version = details.model_version
    key = _key(version.name)
    create_link_artifact(
        shown.workspace.links().report(audit_id, shown.recorded.audit_run),
        link_text=f"Audit {short(audit_id)} of {version.model_version_id}",
        key=f"{key}-report",
        description=f"{len(details.audit.outputs)} outputs, method {details.audit.method}",
    )
    rows = [
        {
            "severity": finding.severity,
            "rule": finding.rule,
            "output": finding.output_id or "all",
            "what": finding.message,
        }
        for finding in details.findings
    ]
    if rows:
        create_table_artifact(rows, key=f"{key}-findings", description=f"Findings of audit {short(audit_id)}")
    create_markdown_artifact(_summary(details, len(rows)), key=f"{key}-audit", description="What the audit found")


def _summary(details: AuditDetails, findings: int) -> str:
    shares = [
        f"| {share.attribute} | {markdown_text(share.value)} | {share.share:.1%} | {share.training_share:.1%} |"
        for share in details.shares
        if share.output_id is None and share.side == "proponent" and share.attribute in ("source", "licence")
    ]
    table = ["", "| attribute | value | share of support | share of training data |", "|---|---|---|---|", *shares]
    return "\n".join(
        [
            f"# Audit of {markdown_text(details.model_version.model_version_id)}",
            f"{len(details.audit.outputs)} outputs, method `{details.audit.method}`, {findings} findings.",
            *(table if shares else []),
        ]
    )


def _key(name: str) -> str:
    """Prefect allows lower-case letters, digits and dashes."""
    return "gradtrail-" + (re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "model")
