"""The tasks of alerts: which are due, their delivery, and the event that Prefect gets."""

from __future__ import annotations

from uuid import UUID

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.events import emit_event

from gradtrail.lineage.connections import recorded
from gradtrail.lineage.events.alerts import Alert
from gradtrail.lineage.read import queries
from gradtrail.lineage.read.audit_history import findings_of
from gradtrail.tasks.alert import deliveries
from gradtrail.tasks.alert.deliveries import counts, severe
from gradtrail.tasks.core.workspace import Workspace
from gradtrail.tasks.run_log import warn

EVENT = "gradtrail.audit.findings"

note_alerts = task(cache_policy=NO_CACHE)(deliveries.note_alerts)


@task(cache_policy=NO_CACHE)
def deliver_alerts(workspace: Workspace) -> int:
    """Deliver what is due, the oldest first; returns the number delivered."""
    return deliveries.deliver_alerts(workspace, emit, warn)


def emit(workspace: Workspace, alert: Alert) -> None:
    """Emit the Prefect event of an audit; its id comes from the alert's, so that a repeat is the same event."""
    with workspace.ledger().read() as connection:
        findings = findings_of(connection, alert.audit_id)
        audit = recorded(queries.audit(connection, alert.audit_id), alert.audit_id)
    model = audit.model_version_id.rpartition("/")[0]
    emit_event(
        EVENT,
        resource={
            "prefect.resource.id": f"gradtrail.audit.{alert.audit_id}",
            "prefect.resource.name": f"audit of {audit.model_version_id}",
            "gradtrail.model": model,
            "gradtrail.worst_severity": severe(findings, "info")[0].severity,
        },
        related=[
            {
                "prefect.resource.id": f"gradtrail.model_version.{audit.model_version_id}",
                "prefect.resource.role": "model-version",
            }
        ],
        payload={
            "audit_id": alert.audit_id,
            "findings": counts(findings),
            "messages": [finding.message for finding in findings[:10]],
        },
        id=UUID(alert.idempotency_key[:32]),
    )
