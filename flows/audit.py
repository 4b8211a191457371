"""The flow `audit`: every output that no audit has covered yet gets one, once."""

from __future__ import annotations

from dataclasses import dataclass

from prefect import flow

from gradtrail.tasks.announcing import announce
from gradtrail.tasks.auditing import AuditOptions, measure_outputs, recorded_warnings, score_outputs
from gradtrail.tasks.calibrated import resolve_audit
from gradtrail.tasks.collecting import collect_outputs, pending_output_ids
from gradtrail.tasks.erasing import retain_payloads
from gradtrail.tasks.indexing import publish_snapshot
from gradtrail.tasks.ingesting import resolve_version
from gradtrail.tasks.linking import link_report
from gradtrail.tasks.reporting import unfinished_audit_ids, write_audit_report
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
        finished: audits of an earlier, interrupted run whose reports this run completed.
        warnings: what to know about the method on this index, as whole sentences; the report has them too.
    """

    model_version_id: str
    audit_id: str = ""
    report: str = ""
    output_count: int = 0
    left_out: int = 0
    refused: tuple[tuple[str, str], ...] = ()
    finished: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


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
    """
    version = resolve_version(workspace, reference)
    model_version_id = version.model_version_id
    resolved = resolve_audit(workspace, model_version_id, options)
    options, index_ids = resolved.options, resolved.index_ids
    collected = collect_outputs(workspace)

    finished = unfinished_audit_ids(workspace, model_version_id)
    for audit_id in finished:
        write_audit_report(workspace, audit_id)
        link_report(workspace, audit_id)

    pending = pending_output_ids(workspace, model_version_id, options.target)
    measured = measure_outputs(workspace, model_version_id, index_ids, pending, options) if pending else []
    audit_id, report = "", ""
    if measured:
        audit_id = score_outputs(workspace, model_version_id, index_ids, measured, options)
        report = write_audit_report(workspace, audit_id)
        link_report(workspace, audit_id)
    if workspace.payload_retention_days:
        retain_payloads(workspace, workspace.payload_retention_days)
    warnings = recorded_warnings(workspace, audit_id) if audit_id else ()
    if finished or pending or collected.new_output_ids or collected.refused:
        publish_snapshot(workspace)
        announce(workspace)
    return AuditOutcome(
        model_version_id,
        audit_id,
        report,
        output_count=len(measured),
        left_out=len(pending) - len(measured),
        refused=collected.refused,
        finished=tuple(finished),
        warnings=warnings,
    )
