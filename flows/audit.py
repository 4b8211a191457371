"""The flow `audit`: every output that no audit has covered yet gets one, once."""

from __future__ import annotations

from dataclasses import dataclass

from prefect import flow

from gradtrail.errors import GradtrailError
from gradtrail.flows.examining import examine, finish
from gradtrail.storage.exclusive import holding
from gradtrail.tasks.alerting import deliver_alerts
from gradtrail.tasks.announcing import announce
from gradtrail.tasks.answering import answer_traces
from gradtrail.tasks.audit_options import AuditOptions
from gradtrail.tasks.calibrated import resolve_audit
from gradtrail.tasks.collecting import collect_outputs, pending_outputs, require_sources
from gradtrail.tasks.erasing import retain_payloads
from gradtrail.tasks.indexing import publish_snapshot
from gradtrail.tasks.ingesting import resolve_version
from gradtrail.tasks.reporting import unfinished_audit_ids
from gradtrail.tasks.workspace import Workspace


@dataclass(frozen=True)
class AuditOutcome:
    """What an audit run did.

    Attributes:
        model_version_id: the pinned version.
        audit_id: the new audit; empty when there was nothing new.
        report: path of its HTML file.
        output_count: outputs the audit covers.
        left_out: pending outputs it does not cover: refused when measured, or without the label that was asked for.
        refused: record ids refused by this run, with the cause.
        waiting: outputs that wait for a later run: their model version is not ingested, or this run was full.
        sampled_out: new records that the sampling of their source left out.
        finished: audits of an earlier, interrupted run whose reports this run completed.
        warnings: what to know about the method on this index, as whole sentences; the report has them too.
        earlier: audits that this run made before `audit_id`, where the outputs were too many for one.
    """

    model_version_id: str
    audit_id: str = ""
    report: str = ""
    output_count: int = 0
    left_out: int = 0
    refused: tuple[tuple[str, str], ...] = ()
    waiting: int = 0
    sampled_out: int = 0
    finished: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    earlier: tuple[str, ...] = ()


@flow(name="gradtrail-audit")
def audit(
    workspace: Workspace,
    reference: str,
    options: AuditOptions = AuditOptions(),  # noqa: B008 - frozen
) -> AuditOutcome:
    """Collect outputs, audit those that are new, write the report, link it in MLflow. A repeat finds nothing to do.

    Args:
        workspace: where everything lives.
        reference: `NAME@alias`, `NAME/3` or `NAME`; an alias is resolved once and pinned by number.
        options: method, target and what to keep.

    Raises:
        StoreError: at the end, where a source could not be read or a trace not be answered; the next run does it.
    """
    version = resolve_version(workspace, reference)
    model_version_id = version.model_version_id
    resolved = resolve_audit(workspace, model_version_id, options)
    options = resolved.options
    collected = collect_outputs(workspace)

    # Two runs at once would both see an output as pending: the second waits, and then finds what the first left.
    with holding(workspace.audit_lock(model_version_id)):
        finished = unfinished_audit_ids(workspace, model_version_id)
        for audit_id in finished:
            finish(workspace, audit_id)

        pending = pending_outputs(workspace, model_version_id, options.target).output_ids
        examined = examine(workspace, model_version_id, pending, resolved)
    delivered = deliver_alerts(workspace)
    failed = collected.failed + _unanswered(workspace)
    if workspace.payload_retention_days:
        retain_payloads(workspace, workspace.payload_retention_days)
    if delivered or finished or pending or collected.new_output_ids or collected.refused or collected.sampled_out:
        publish_snapshot(workspace)
        announce(workspace)
    require_sources(failed)
    return AuditOutcome(
        model_version_id,
        examined.audit_id,
        examined.report,
        output_count=examined.output_count,
        left_out=len(pending) - examined.output_count,
        refused=collected.refused,
        waiting=collected.waiting,
        sampled_out=collected.sampled_out,
        finished=tuple(finished),
        warnings=examined.warnings,
        earlier=examined.earlier,
    )


def _unanswered(workspace: Workspace) -> tuple[tuple[str, str], ...]:
    if not any(source.kind == "traces" for source in workspace.sources):
        return ()
    try:
        answer_traces(workspace)
    except GradtrailError as fault:
        return (("answers to traces", str(fault)),)
    return ()
