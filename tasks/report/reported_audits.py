"""An audit read back from the ledger, with all that its report and its pages in MLflow show."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, partial

from gradtrail.digests import short
from gradtrail.lineage.chain.proofs import AuditEvidence, audit_evidence
from gradtrail.lineage.erasure.erasures import erased_subjects
from gradtrail.lineage.events.source_watermarks import watermarks_before
from gradtrail.lineage.read import queries
from gradtrail.lineage.read.answers import AuditDetails, RecordedExample
from gradtrail.lineage.verify.signatures import AuditSignature, signature_of
from gradtrail.nouns import Fidelity, Index, Output, Run, Watermark, Weighting
from gradtrail.storage.models.audit_runs import AuditRun, open_audit_run, open_index_run, open_trend_run
from gradtrail.storage.models.registry import Registry
from gradtrail.tasks.collect.traced import trace_pages
from gradtrail.tasks.core.ledger_nouns import recorded_index, recorded_run, recorded_weighting
from gradtrail.tasks.core.measured_fidelity import audited_fidelity
from gradtrail.tasks.core.measured_outputs import MEASURING
from gradtrail.tasks.core.models import PinnedModel, pinned_model
from gradtrail.tasks.core.workspace import Workspace


@dataclass(frozen=True)
class ReportedAudit:
    """What the ledger holds about one audit, the model it is about, and the MLflow runs that show it."""

    details: AuditDetails
    index: Index
    examples: Mapping[str, RecordedExample]
    run: Run
    outputs: tuple[Output, ...]
    attribute_counts: Mapping[str, Mapping[str, int]]
    weighting: Weighting
    refused: Mapping[str, str]
    sources: tuple[Watermark, ...]
    evidence: AuditEvidence
    signature: AuditSignature | None
    erased: Mapping[str, int]
    fidelity: Fidelity | None
    fidelity_alone: Fidelity | None
    pinned: PinnedModel
    audit_run: AuditRun
    trend_run: AuditRun
    index_run: AuditRun
    trace_pages: Mapping[str, str]

    @property
    def title(self) -> str:
        """What the report and its MLflow run are called."""
        return _title(self.details)


class ShownAudit:
    """A recorded audit on its way through the steps that show it: the first reads it, and the others take it from here.

    Not a dataclass, for Prefect would look at every number in it whenever a task takes it.

    Args:
        workspace: where everything lives.
        audit_id: the audit.
        pinned: the model it is about, where that is at hand.
    """

    def __init__(self, workspace: Workspace, audit_id: str, pinned: PinnedModel | None = None) -> None:
        self.workspace = workspace
        self.audit_id = audit_id
        self._pinned = pinned

    @cached_property
    def registry(self) -> Registry:
        """One client of MLflow for all steps."""
        return self.workspace.registry()

    @cached_property
    def recorded(self) -> ReportedAudit:
        """The audit as the ledger has it."""
        return reported_audit(self.workspace, self.audit_id, self._pinned, self.registry)


def reported_audit(
    workspace: Workspace, audit_id: str, pinned: PinnedModel | None = None, registry: Registry | None = None
) -> ReportedAudit:
    """Read an audit back from the ledger; opens its MLflow run, so that the report can link to it."""
    with workspace.ledger().read() as connection:
        details = queries.audit_details(connection, audit_id)
        index = recorded_index(connection, details.audit.index_ids[-1])
        named = {a.example_id for a in details.attributions} | {e.example_id for e in details.influences}
        examples = queries.examples(connection, index.dataset_version_id, sorted(named))
        run = recorded_run(connection, details.model_version.run_id)
        outputs = queries.outputs(connection, [output_id for output_id, _ in details.audit.outputs])
        weighting = recorded_weighting(connection, details.audit.weighting_id)
        measured_since = {(MEASURING[target], output_id) for output_id, target in details.audit.outputs}
        quarantined = queries.quarantined(connection, before=details.event_sequence)
        refused = [each for each in quarantined if (each.source, each.record_id) not in measured_since]
        sources = watermarks_before(connection, details.event_sequence)
        evidence = audit_evidence(connection, audit_id)
        signature = signature_of(connection, audit_id)
        erased = erased_subjects(connection, ["example", "output"])
        measured = partial(
            audited_fidelity,
            connection,
            details.model_version.checkpoint_ids[-1],
            details.audit.method,
            details.audit.parameters,
            details.audit.weighting_id,
            details.audit.index_ids,
            details.audit.outputs[0][1],
            before=details.event_sequence,
        )
        fidelity, alone = measured(), measured(metric="fidelity_loo")
        counts: dict[str, dict[str, int]] = {}
        for found in queries.attribute_counts(connection, index.dataset_version_id):
            counts.setdefault(found.attribute, {})[found.value] = found.examples
    registry = registry or workspace.registry()
    return ReportedAudit(
        details=details,
        index=index,
        examples=examples,
        run=run,
        outputs=tuple(outputs),
        attribute_counts=counts,
        weighting=weighting,
        refused={f"{r.source}: {r.record_id}" if r.record_id else r.source: r.cause for r in refused},
        sources=tuple(sources),
        evidence=evidence,
        signature=signature,
        erased=erased,
        fidelity=fidelity,
        fidelity_alone=alone,
        pinned=pinned or pinned_model(workspace, details.audit.model_version_id),
        audit_run=open_audit_run(registry, audit_id, f"{_title(details)} ({short(audit_id)})"),
        trend_run=open_trend_run(registry, details.model_version.name),
        index_run=open_index_run(registry),
        trace_pages=trace_pages(workspace, registry, outputs),
    )


def _title(details: AuditDetails) -> str:
    return f"Audit of {details.model_version.name}, version {details.model_version.version}"
