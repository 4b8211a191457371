"""The flow `reaudit`: outputs that were audited before are audited again, after a withdrawal or by another method."""

from __future__ import annotations

from prefect import flow

from gradtrail.flows.audit import AuditOutcome
from gradtrail.flows.examining import examine
from gradtrail.storage.files.exclusive import holding
from gradtrail.tasks.alerting import deliver_alerts
from gradtrail.tasks.announcing import announce
from gradtrail.tasks.audit.options import AuditOptions
from gradtrail.tasks.audited import audited_output_ids
from gradtrail.tasks.calibrated import resolve_audit
from gradtrail.tasks.collect.collecting import require_finished
from gradtrail.tasks.core.workspace import Workspace
from gradtrail.tasks.indexing import publish_snapshot
from gradtrail.tasks.ingesting import resolve_version


@flow(name="gradtrail-reaudit")
def reaudit(
    workspace: Workspace,
    reference: str,
    options: AuditOptions = AuditOptions(),  # noqa: B008 - frozen
    audit_id: str = "",
) -> AuditOutcome:
    """Audit again what earlier audits of a model version examined; the earlier audits stay as they are.

    The same outputs by the same method, policy and withdrawals make the same audit, so that a repeat finds nothing new.
    Outputs whose payload was deleted are left out.

    Args:
        workspace: where everything lives.
        reference: `NAME@alias`, `NAME/3` or `NAME`.
        options: method, target and what to keep.
        audit_id: only the outputs of that audit.

    Raises:
        StoreError: at the end, where the disk did not give an output.
    """
    model_version_id = resolve_version(workspace, reference).model_version_id
    resolved = resolve_audit(workspace, model_version_id, options)
    with holding(workspace.audit_lock(model_version_id)):
        output_ids, without_payload = audited_output_ids(workspace, model_version_id, options.target, audit_id)
        examined = examine(workspace, model_version_id, output_ids, resolved)
    deliver_alerts(workspace)
    publish_snapshot(workspace)
    announce(workspace)
    require_finished(examined.failed)
    return AuditOutcome(
        model_version_id,
        examined.audit_id,
        examined.report,
        output_count=examined.output_count,
        left_out=len(output_ids) + without_payload - examined.output_count,
        warnings=examined.warnings,
        earlier=examined.earlier,
    )
