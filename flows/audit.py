"""The flow `audit`: every output that no audit has covered yet gets one, once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from prefect import flow

from gradtrail.digests import short
from gradtrail.durations import in_words
from gradtrail.errors import GradtrailError, NotReadyError, said
from gradtrail.flows.examining import Examined, examine, finish
from gradtrail.storage.files.exclusive import holding
from gradtrail.storage.models.registry import RegisteredVersion
from gradtrail.tasks.alerting import deliver_alerts
from gradtrail.tasks.announcing import announce
from gradtrail.tasks.answering import answer_traces
from gradtrail.tasks.audit.options import AuditOptions
from gradtrail.tasks.audit.resolving import ResolvedAudit
from gradtrail.tasks.calibrated import resolve_audit
from gradtrail.tasks.collect.collecting import (
    WaitingOutputs,
    count_pending,
    require_finished,
    require_sources,
)
from gradtrail.tasks.collecting import collect_outputs, look_for_work, pending_outputs
from gradtrail.tasks.core.workspace import Workspace
from gradtrail.tasks.erasing import retain_payloads
from gradtrail.tasks.govern.judged import AT_READING, LEFT_OUT, WAITING, Given, require_share
from gradtrail.tasks.govern.verdicts import judge_run
from gradtrail.tasks.indexing import publish_snapshot
from gradtrail.tasks.ingesting import resolve_version
from gradtrail.tasks.report.reported_audits import ShownAudit
from gradtrail.tasks.run_log import warn


@dataclass(frozen=True)
class OtherVersion:
    """Another version of the audited model: the audits it got, or the `refusal`, why its outputs are left.

    `left_out` counts its outputs that were not audited.
    """

    model_version_id: str
    audit_ids: tuple[str, ...]
    output_count: int
    refusal: str = ""
    left_out: int = 0


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
        waits: outputs of this model, by version, that wait for a later run.
        sampled_out: new records that the sampling of their source did not choose.
        finished: audits of an earlier, interrupted run whose reports this run completed.
        warnings: what to know about the method on this index, as whole sentences; the report has them too.
        earlier: audits that this run made before `audit_id`, where the outputs were too many for one.
        others: other versions of the model that had outputs left; not looked for where the version is given by number.
        refused_before: recorded outputs without an audit, since earlier runs refused to measure them.
        clock_behind_seconds: how far this machine's clock lies before the newest event of the ledger, where it does.
    """

    model_version_id: str
    audit_id: str = ""
    report: str = ""
    output_count: int = 0
    left_out: int = 0
    refused: tuple[tuple[str, str], ...] = ()
    waits: tuple[WaitingOutputs, ...] = ()
    sampled_out: int = 0
    finished: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    earlier: tuple[str, ...] = ()
    others: tuple[OtherVersion, ...] = ()
    refused_before: int = 0
    clock_behind_seconds: float = 0.0

    @property
    def given(self) -> Given:
        """The outputs this run was given: how many audits cover, how many none does and why."""
        causes = {
            AT_READING: len(self.refused),
            LEFT_OUT: self.left_out,
            WAITING: sum(each.count for each in self.waits),
            **{
                f"of {each.model_version_id}" + (f", left: {each.refusal}" if each.refusal else ""): each.left_out
                for each in self.others
            },
        }
        judged = self.output_count + sum(each.output_count for each in self.others)
        return Given(judged, {cause: count for cause, count in causes.items() if count}, self.sampled_out)

    @property
    def made(self) -> tuple[str, ...]:
        """Every audit that this run made or completed."""
        own = filter(None, (*self.earlier, self.audit_id))
        return (*self.finished, *own, *(audit_id for other in self.others for audit_id in other.audit_ids))


@flow(name="gradtrail-audit")
def audit(
    workspace: Workspace,
    reference: str,
    options: AuditOptions = AuditOptions(),  # noqa: B008 - frozen
    *,
    retry_refused: bool = False,
    most_unjudged: float | None = None,
    least_outputs: int = 0,
) -> AuditOutcome:
    """Collect outputs, audit those that are new, write the report, link it in MLflow. A repeat finds nothing to do.

    Outputs of other versions of the model are audited too, by what was calibrated for them.

    Args:
        workspace: where everything lives.
        reference: `NAME@alias`, `NAME/3` or `NAME`; an alias is resolved once and pinned by number.
        options: method, target and what to keep.
        retry_refused: take outputs, too, that were refused when they were measured: once their cause is gone.
        most_unjudged: share of the outputs, 0 to 1, that may be left without an audit; None for any.
        least_outputs: how many outputs have to be audited at least, where `most_unjudged` is given.

    Raises:
        UnjudgedError: at the end, where more outputs than that were left without an audit, or fewer were audited.
        GradtrailError: at the end, where the version that was asked for is not ready or cannot be audited.
        StoreError: at the end, where a source could not be read, a trace not be answered, an output not be read, a
            report not be finished, or a payload not be erased in time; the next run tries again.
    """
    require_share(most_unjudged or 0.0)
    version = resolve_version(workspace, reference)
    resolved, fault = _resolve(workspace, version.model_version_id, options)
    collected = collect_outputs(workspace)
    left = look_for_work(workspace, version, options.target, retry_refused)
    drained = _Drained(version.model_version_id)
    if resolved is not None and version.model_version_id in left.model_version_ids:
        drained, fault = _drain_first(workspace, version.model_version_id, resolved, retry_refused)
    others: tuple[_Drained, ...] = ()
    if reference != version.model_version_id:
        others = _drain_others(workspace, version, left.model_version_ids, options, retry_refused)
    audited = any(each.anything for each in (drained, *others))
    delivered = deliver_alerts(workspace) if audited or left.alerts_due else 0
    failed = collected.failed + _unanswered(workspace, retry_refused)
    unretained = _unretained(workspace)
    anything = delivered or audited or collected.anything
    # What a run before recorded and could not publish or announce, for want of room or of an answer, is still due.
    if anything or (_is_unpublished(workspace) if _may_have_recorded(workspace, fault) else left.unpublished):
        publish_snapshot(workspace)
    if anything or workspace.openlineage:
        announce(workspace)
    if fault is not None:
        raise fault
    require_sources(failed)
    require_finished((*(each for other in (drained, *others) for each in other.failed), *unretained))
    examined = drained.examined
    outcome = AuditOutcome(
        version.model_version_id,
        examined.audit_id,
        examined.report,
        output_count=examined.output_count,
        left_out=drained.pending - examined.output_count,
        refused=collected.refused,
        waits=tuple(each for each in collected.waits if each.model == version.name),
        sampled_out=collected.sampled_out,
        finished=tuple(audit_id for each in (drained, *others) for audit_id in each.finished),
        warnings=examined.warnings,
        earlier=examined.earlier,
        others=tuple(
            OtherVersion(
                each.model_version_id,
                each.examined.audit_ids,
                each.examined.output_count,
                each.refusal,
                each.pending - each.examined.output_count,
            )
            for each in others
        ),
        refused_before=left.refused,
        clock_behind_seconds=collected.clock_behind_seconds,
    )
    if outcome.clock_behind_seconds:
        warn(f"This machine's clock is {in_words(outcome.clock_behind_seconds)} behind the ledger's newest event.")
    if outcome.given.left:
        warn(outcome.given.in_words())
    if most_unjudged is not None and (
        fault := judge_run(workspace, outcome, options.target, most_unjudged, least_outputs).fault
    ):
        raise fault
    return outcome


@dataclass(frozen=True)
class _Drained:
    """What was done for one model version; `refusal` says why nothing could be, `failed` what was not finished."""

    model_version_id: str
    examined: Examined = field(default_factory=Examined)
    pending: int = 0
    finished: tuple[str, ...] = ()
    failed: tuple[tuple[str, str], ...] = ()
    refusal: str = ""

    @property
    def anything(self) -> bool:
        return bool((self.pending and not self.refusal) or self.finished or self.failed)


def _resolve(
    workspace: Workspace, model_version_id: str, options: AuditOptions
) -> tuple[ResolvedAudit | None, Exception | None]:
    """What the audit does, or why the version is not ready: an error for the end, for it holds up no other version."""
    try:
        return resolve_audit(workspace, model_version_id, options), None
    except NotReadyError as fault:
        return None, fault


def _drain_first(
    workspace: Workspace, model_version_id: str, resolved: ResolvedAudit, retry_refused: bool
) -> tuple[_Drained, Exception | None]:
    """What was done for the version that was asked for, or its error, which is for the end, too."""
    try:
        return _drain(workspace, model_version_id, resolved, retry_refused), None
    except Exception as fault:
        return _Drained(model_version_id), fault


def _drain(workspace: Workspace, model_version_id: str, resolved: ResolvedAudit, retry_refused: bool) -> _Drained:
    """Finish what an earlier run left, then audit every pending output of a model version."""
    finished, failed = [], []
    # Two runs at once would both see an output as pending: the second waits, and then finds what the first left.
    with holding(workspace.audit_lock(model_version_id)):
        pending = pending_outputs(workspace, model_version_id, resolved.options.target, retry_refused)
        for audit_id in pending.unfinished:
            try:
                finish(ShownAudit(workspace, audit_id))
                finished.append(audit_id)
            except Exception as fault:
                failed.append((f"audit {short(audit_id)}", said(fault)))
        examined = examine(workspace, model_version_id, pending.output_ids, resolved)
    failed += examined.failed
    return _Drained(model_version_id, examined, len(pending.output_ids), tuple(finished), tuple(failed))


def _drain_others(
    workspace: Workspace,
    version: RegisteredVersion,
    left: Sequence[str],
    options: AuditOptions,
    retry_refused: bool,
) -> tuple[_Drained, ...]:
    """The same for other versions of the model: outputs come late, and go on after an alias was moved."""
    drained = []
    for model_version_id in left:
        if model_version_id == version.model_version_id:
            continue
        try:
            resolved = resolve_audit(workspace, model_version_id, options)
            drained.append(_drain(workspace, model_version_id, resolved, retry_refused))
        except GradtrailError as fault:
            left_out = count_pending(workspace, model_version_id, options.target, retry_refused)
            drained.append(_Drained(model_version_id, pending=left_out, refusal=str(fault)))
        except Exception as fault:
            drained.append(_Drained(model_version_id, failed=((model_version_id, said(fault)),)))
    return tuple(drained)


def _may_have_recorded(workspace: Workspace, fault: Exception | None) -> bool:
    """Whether a step that does not say so may have recorded something since the run looked for work."""
    return fault is not None or bool(workspace.payload_retention_days) or _has_traces(workspace)


def _is_unpublished(workspace: Workspace) -> bool:
    ledger = workspace.ledger()
    with ledger.read() as connection:
        return not ledger.is_published(connection)


def _has_traces(workspace: Workspace) -> bool:
    return any(source.kind == "traces" for source in workspace.sources)


def _unanswered(workspace: Workspace, retry_refused: bool) -> tuple[tuple[str, str], ...]:
    if not _has_traces(workspace):
        return ()
    try:
        answer_traces(workspace, retry_refused)
    except Exception as fault:
        return (("answers to traces", said(fault)),)
    return ()


def _unretained(workspace: Workspace) -> tuple[tuple[str, str], ...]:
    if not workspace.payload_retention_days:
        return ()
    try:
        retain_payloads(workspace, workspace.payload_retention_days)
    except Exception as fault:
        return (("payload retention", said(fault)),)
    return ()
