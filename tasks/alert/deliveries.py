"""Alerting: what an audit found goes to Prefect and to webhooks, at least once, and never at the audit's cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from gradtrail.digests import canonical_json
from gradtrail.lineage.chain.proofs import audit_evidence
from gradtrail.lineage.events.alerts import DELIVERED, DUE, Alert, record_alerts, undelivered_alerts
from gradtrail.lineage.read import queries
from gradtrail.nouns import SEVERITIES, Finding, Severity
from gradtrail.reports.policies.sql import evidence_sql
from gradtrail.storage.models.audit_runs import AuditRun
from gradtrail.storage.webhooks import AwayError, RefusedError, Webhook, post
from gradtrail.tasks.core.workspace import Workspace
from gradtrail.tasks.report.reported_audits import ShownAudit

SCHEMA = "gradtrail.alert/1"
PREFECT = "prefect"
LEAST_FOR_PREFECT: Severity = "low"
_MOST_FINDINGS = 100


def note_alerts(shown: ShownAudit) -> int:
    """Record which outlets have to hear of an audit, before its report counts as done; returns how many.

    Whatever is killed after this, the alert is due and a later run delivers it.
    """
    workspace, findings = shown.workspace, shown.recorded.details.findings
    least = {PREFECT: LEAST_FOR_PREFECT, **{each.outlet: each.least_severity for each in workspace.webhooks}}
    due = [Alert(shown.audit_id, outlet) for outlet, severity in least.items() if severe(findings, severity)]
    if due:
        record_alerts(workspace.ledger(), due, DUE)
    return len(due)


def deliver_alerts(workspace: Workspace, emit: Callable[[Workspace, Alert], None], warn: Callable[[str], None]) -> int:
    """Deliver what is due, the oldest first; returns the number delivered. An outlet that is away fails nothing.

    Of an outlet that stays away the rest waits for the next run; what it refuses does not hold up the rest. An outlet
    that the settings name no longer keeps what was due until they name it again.

    Args:
        workspace: where everything lives.
        emit: tells Prefect of an alert.
        warn: is told what could not be delivered.
    """
    ledger = workspace.ledger()
    webhooks = {name: each for each in workspace.webhooks for name in each.outlets}
    webhooks.update({each.outlet: each for each in workspace.webhooks})
    with ledger.read() as connection:
        due = undelivered_alerts(connection)
    away: set[str] = set()
    delivered = 0
    for alert in due:
        if alert.outlet in away or alert.outlet not in {PREFECT, *webhooks}:
            continue
        try:
            if alert.outlet == PREFECT:
                emit(workspace, alert)
            else:
                webhook = webhooks[alert.outlet]
                post(webhook, canonical_json(alert_document(workspace, alert, webhook)), alert.idempotency_key)
        except AwayError as fault:
            away.add(alert.outlet)
            warn(f"An alert was not delivered. {fault}")
        except RefusedError as fault:
            warn(f"An alert about audit {alert.audit_id} was not delivered. {fault}")
        else:
            record_alerts(ledger, [alert], DELIVERED)
            delivered += 1
    return delivered


def severe(findings: Sequence[Finding], least: Severity) -> list[Finding]:
    """The findings of a severity or a higher one, in the order given."""
    return [finding for finding in findings if SEVERITIES.index(finding.severity) <= SEVERITIES.index(least)]


def counts(findings: Sequence[Finding]) -> dict[str, int]:
    """How many findings there are of each severity."""
    found = Counter(finding.severity for finding in findings)
    return {severity: found[severity] for severity in SEVERITIES}


def alert_document(workspace: Workspace, alert: Alert, webhook: Webhook) -> dict[str, Any]:
    """What a webhook is told, under the schema name `gradtrail.alert/1`; the most severe 100 findings one by one."""
    with workspace.ledger().read() as connection:
        details = queries.audit_details(connection, alert.audit_id)
        evidence = audit_evidence(connection, alert.audit_id)
        report = queries.report_of(connection, alert.audit_id)
    link = ""
    if report is not None and report.mlflow_run_id and report.mlflow_experiment_id:
        link = workspace.links().report(alert.audit_id, AuditRun(report.mlflow_run_id, report.mlflow_experiment_id))
    told = severe(details.findings, webhook.least_severity)
    return {
        "schema": SCHEMA,
        "idempotency_key": alert.idempotency_key,
        "audit_id": alert.audit_id,
        "audit_root": evidence.audit_root,
        "event_hash": evidence.event_hash,
        "recorded_at": details.recorded_at.isoformat(),
        "model_version_id": details.model_version.model_version_id,
        "output_count": len(details.results),
        "report": link,
        "finding_counts": counts(details.findings),
        "findings": [
            {
                "rule": finding.rule,
                "severity": finding.severity,
                "message": finding.message,
                "output_id": finding.output_id,
                "sql": evidence_sql(alert.audit_id, finding),
            }
            for finding in told[:_MOST_FINDINGS]
        ],
        "findings_left_out": max(0, len(told) - _MOST_FINDINGS),
    }
