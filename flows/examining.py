"""What an audit and a repeated audit share: measure outputs, score them, write the report, link and show it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gradtrail.storage.process_memory import collecting_only_new_objects
from gradtrail.tasks.alerting import note_alerts
from gradtrail.tasks.audit.audited_model import AuditedModel
from gradtrail.tasks.audit.resolving import ResolvedAudit
from gradtrail.tasks.auditing import score_outputs
from gradtrail.tasks.core.workspace import Workspace
from gradtrail.tasks.linking import link_report
from gradtrail.tasks.measuring import measure_outputs
from gradtrail.tasks.report.reported_audits import ShownAudit
from gradtrail.tasks.reporting import publish_report_index, write_audit_report
from gradtrail.tasks.showing import show_audit
from gradtrail.tasks.trends import record_trend

MOST_OUTPUTS = 1000
"""Outputs that one audit covers: they bound the memory of scoring and the size of a report."""


@dataclass(frozen=True)
class Examined:
    """The audit that was made; all empty when none of the outputs could be measured.

    More than `MOST_OUTPUTS` outputs make several audits. `audit_id` and `report` are the last one's, `earlier` are the
    ids of those before it, and the rest is of all together. `failed` are outputs that could not be read, and why.
    """

    audit_id: str = ""
    report: str = ""
    output_count: int = 0
    warnings: tuple[str, ...] = ()
    earlier: tuple[str, ...] = ()
    failed: tuple[tuple[str, str], ...] = ()

    @property
    def audit_ids(self) -> tuple[str, ...]:
        """All audits that were made, in order."""
        return tuple(filter(None, (*self.earlier, self.audit_id)))


def examine(
    workspace: Workspace, model_version_id: str, output_ids: Sequence[str], resolved: ResolvedAudit
) -> Examined:
    """Audit these outputs, portion by portion, each from its payloads to the linked report before the next begins."""
    audited = AuditedModel(workspace, model_version_id, resolved.index_ids, resolved.options)
    examined = Examined()
    for start in range(0, len(output_ids), MOST_OUTPUTS):
        with collecting_only_new_objects():
            portion = _examine(audited, output_ids[start : start + MOST_OUTPUTS])
        latest = portion if portion.audit_id else examined
        examined = Examined(
            latest.audit_id,
            latest.report,
            examined.output_count + portion.output_count,
            tuple(dict.fromkeys((*examined.warnings, *portion.warnings))),
            (*examined.audit_ids, *portion.audit_ids)[:-1],
            (*examined.failed, *portion.failed),
        )
    return examined


def _examine(audited: AuditedModel, output_ids: Sequence[str]) -> Examined:
    measured = measure_outputs(audited, output_ids)
    if not measured.outputs:
        return Examined(failed=measured.unread)
    audit_id = score_outputs(audited, measured)
    shown = ShownAudit(audited.workspace, audit_id, audited.pinned)
    report = finish(shown)
    warnings = tuple(shown.recorded.details.method_notes.get("warnings", ()))
    return Examined(audit_id, report, len(measured.outputs), warnings, failed=measured.unread)


def finish(shown: ShownAudit) -> str:
    """All pages that show a recorded audit; returns the path of its report. Repeating it changes nothing.

    Linking comes last but one, for it records the report as done: what a kill interrupts before is done again.
    """
    report = write_audit_report(shown)
    record_trend(shown)
    publish_report_index(shown.workspace, shown=shown)
    note_alerts(shown)
    link_report(shown)
    show_audit(shown)
    return report
