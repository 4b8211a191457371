"""Reports: written from the ledger alone, so that an interrupted audit's report can be completed at any time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from prefect import task
from prefect.cache_policies import NO_CACHE

from gradtrail import __version__
from gradtrail.attribution.methods import find_method
from gradtrail.digests import sha256_file, short
from gradtrail.errors import NotFoundError
from gradtrail.lineage import queries
from gradtrail.lineage.erasures import erased_subjects
from gradtrail.lineage.proofs import AuditEvidence, audit_evidence
from gradtrail.lineage.records import AuditDetails, RecordedExample
from gradtrail.lineage.revisions import record_revision
from gradtrail.lineage.signatures import AuditSignature, sign_audit, signature_of
from gradtrail.nouns import Fidelity, Index, Output, Preview, Run, Side, Weighting
from gradtrail.reports.model import AuditReport, ExampleCard, LineageStep, OutputSection, Overall, SignedRoot, Trust
from gradtrail.reports.write import HTML_NAME, write_report
from gradtrail.storage.audit_runs import (
    AuditRun,
    Links,
    open_audit_run,
    open_index_run,
    open_trend_run,
    upload_files,
)
from gradtrail.storage.outputs import payload_record
from gradtrail.tasks.auditing import output_example
from gradtrail.tasks.datasets import ExampleFinder
from gradtrail.tasks.measured_fidelity import audited_fidelity, fidelity_notes, question_of
from gradtrail.tasks.models import PinnedModel, pinned_model
from gradtrail.tasks.output_evidence import OutputEvidence, evidence_by_output
from gradtrail.tasks.recorded import recorded_index, recorded_run, recorded_weighting
from gradtrail.tasks.retrying import WITH_RETRIES
from gradtrail.tasks.traced import trace_pages
from gradtrail.tasks.workspace import Workspace

LINEAGE_EXAMPLES = 3
OVERALL_CARDS = 12


@dataclass(frozen=True)
class FoundReport:
    """A report on disk, and its page in MLflow (empty before it is linked)."""

    audit_id: str
    html: str
    mlflow_url: str
    rewritten: bool


@dataclass(frozen=True)
class RecordedAudit:
    """What the ledger holds about one audit, the model it is about, and the MLflow runs that show it."""

    details: AuditDetails
    index: Index
    examples: Mapping[str, RecordedExample]
    run: Run
    outputs: tuple[Output, ...]
    attribute_counts: Mapping[str, Mapping[str, int]]
    weighting: Weighting
    refused: Mapping[str, str]
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


@task(cache_policy=NO_CACHE)
def unfinished_audit_ids(workspace: Workspace, model_version_id: str) -> list[str]:
    """Audits that an interrupted run recorded without getting to the end of their report."""
    with workspace.ledger().read() as connection:
        return queries.unreported_audits(connection, model_version_id)


@task(**WITH_RETRIES)
def write_audit_report(workspace: Workspace, audit_id: str) -> str:
    """Sign the audit where a key is set, then write HTML, JSON and Parquet; returns the path of the HTML file."""
    if workspace.signing_key:
        sign_audit(workspace.ledger(), audit_id, Path(workspace.signing_key))
    return str(write_report(build_report(workspace, audit_id), workspace.reports).html)


def ensure_report(workspace: Workspace, audit_id: str) -> FoundReport:
    """Find an audit's report, by id, beginning of an id, or the newest; write it again if its file is gone.

    Raises:
        NotFoundError: if there is no such audit, or none at all.
    """
    with workspace.ledger().read() as connection:
        if audit_id:
            kind, audit_id = queries.resolve(connection, audit_id)
            if kind != "audit":
                raise NotFoundError(f"{audit_id} is a {kind.replace('_', ' ')}, not an audit.", "Give an audit's id.")
        elif latest := queries.latest_audit(connection):
            audit_id = latest.audit_id
        else:
            raise NotFoundError("There is no audit yet.", "Run one: gradtrail audit NAME@alias, or gradtrail demo.")
        report = queries.report_of(connection, audit_id)
    path = workspace.reports / audit_id / HTML_NAME
    rewritten = not path.is_file() or (report is not None and sha256_file(path) != report.html_sha256)
    if rewritten:
        path = rewrite_report(workspace, audit_id, "its file was gone or changed")
    url = ""
    if report is not None and report.mlflow_run_id and report.mlflow_experiment_id:
        links = workspace.links()
        url = links.artifact(report.mlflow_experiment_id, report.mlflow_run_id, HTML_NAME)
    return FoundReport(audit_id, str(path), url, rewritten)


def rewrite_report(workspace: Workspace, audit_id: str, reason: str) -> Path:
    """Write a report again from what the ledger holds now; where that gives other bytes, in MLflow too and recorded."""
    files = write_report(build_report(workspace, audit_id), workspace.reports)
    with workspace.ledger().read() as connection:
        report = queries.report_of(connection, audit_id)
    if report is not None and {HTML_NAME: report.html_sha256, **report.file_sha256} != files.sha256:
        if report.mlflow_run_id:
            upload_files(workspace.registry(), report.mlflow_run_id, [files.html, files.json, files.parquet])
        record_revision(workspace.ledger(), "report", audit_id, files.sha256, reason)
    return files.html


def recorded_audit(workspace: Workspace, audit_id: str) -> RecordedAudit:
    """Read an audit back from the ledger; opens its MLflow run, so that the report can link to it."""
    with workspace.ledger().read() as connection:
        details = queries.audit_details(connection, audit_id)
        index = recorded_index(connection, details.audit.index_ids[-1])
        named = {a.example_id for a in details.attributions} | {e.example_id for e in details.influences}
        examples = queries.examples(connection, index.dataset_version_id, sorted(named))
        run = recorded_run(connection, details.model_version.run_id)
        outputs = queries.outputs(connection, [output_id for output_id, _ in details.audit.outputs])
        weighting = recorded_weighting(connection, details.audit.weighting_id)
        refused = queries.quarantined(connection, before=details.event_sequence)
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
    registry = workspace.registry()
    return RecordedAudit(
        details=details,
        index=index,
        examples=examples,
        run=run,
        outputs=tuple(outputs),
        attribute_counts=counts,
        weighting=weighting,
        refused={f"{r.source}: {r.record_id}" if r.record_id else r.source: r.cause for r in refused},
        evidence=evidence,
        signature=signature,
        erased=erased,
        fidelity=fidelity,
        fidelity_alone=alone,
        pinned=pinned_model(workspace, details.audit.model_version_id),
        audit_run=open_audit_run(registry, audit_id, f"{_title(details)} ({short(audit_id)})"),
        trend_run=open_trend_run(registry, details.model_version.name),
        index_run=open_index_run(registry),
        trace_pages=trace_pages(workspace, outputs),
    )


def build_report(workspace: Workspace, audit_id: str) -> AuditReport:
    """Gather an audit's report from the ledger, the payloads and the adapter's previews."""
    recorded = recorded_audit(workspace, audit_id)
    pinned, run, links = recorded.pinned, recorded.run, workspace.links()
    cards = _Cards(pinned, recorded.examples, recorded.erased)
    evidence = evidence_by_output(recorded.details)
    return AuditReport(
        audit=recorded.details.audit,
        created_at=recorded.details.recorded_at,
        title=recorded.title,
        model_version=pinned.model_version,
        model_links={
            "Model version": links.model_version(pinned.model_version.name, pinned.model_version.version),
            "Training run": links.run(run.experiment_id, run.run_id),
            "Audit run": links.run(recorded.audit_run.experiment_id, recorded.audit_run.run_id),
            "Trend": links.metrics(recorded.trend_run),
            "All audits": links.index(recorded.index_run),
        },
        run=run,
        checkpoint=pinned.serving,
        dataset=pinned.dataset,
        attribute_counts=recorded.attribute_counts,
        trust=_trust(recorded),
        findings=recorded.details.findings,
        overall=_overall(recorded.details, cards),
        outputs=tuple(
            _section(workspace, recorded, output, evidence[output.output_id], cards, links)
            for output in recorded.outputs
        ),
        ledger_head=recorded.evidence.event_hash,
        audit_root=recorded.evidence.audit_root,
        signature=_signed(recorded.signature),
        preview_mode=workspace.preview,
        gradtrail_version=__version__,
    )


class _Cards:
    """Example cards, each example fetched and drawn once."""

    def __init__(self, pinned: PinnedModel, examples: Mapping[str, RecordedExample], erased: Mapping[str, int]) -> None:
        self._adapter = pinned.adapter
        self._examples = examples
        places = {key: (example.position, example.content_sha256) for key, example in examples.items()}
        self._find = ExampleFinder(pinned.adapter.training_data(), places)
        self._previews: dict[str, Preview | None] = {name: _tombstone(event) for name, event in erased.items()}

    def card(self, example_id: str, side: Side, rank: int, score: float | None, share: float | None) -> ExampleCard:
        if example_id not in self._previews:
            self._previews[example_id] = self._adapter.preview(self._find(example_id))
        recorded = self._examples[example_id]
        return ExampleCard(
            example_id=example_id,
            content_sha256=recorded.content_sha256,
            attributes=recorded.attributes,
            preview=self._previews[example_id],
            score=score,
            rank=rank,
            share=share,
            side=side,
        )


def _section(
    workspace: Workspace, recorded: RecordedAudit, output: Output, evidence: OutputEvidence, cards: _Cards, links: Links
) -> OutputSection:
    adapter, result = recorded.pinned.adapter, evidence.result
    label, preview = None, None
    if output.output_id in recorded.erased:
        preview = _tombstone(recorded.erased[output.output_id])
    elif output.payload_sha256 in workspace.payloads():
        record = payload_record(workspace.payloads().get(output.payload_sha256))
        preview = adapter.preview(output_example(recorded.pinned, output, record, evidence.target))
        if record.get("label") is not None:
            label = adapter.target_text(adapter.output_to_example(record, "label").target)
    ranked: dict[str, list[ExampleCard]] = {"proponent": [], "opponent": []}
    mass = {"proponent": result.proponent_mass, "opponent": result.opponent_mass}
    for found in evidence.attributions:
        share = abs(found.score) / mass[found.side] if mass[found.side] else None
        ranked[found.side].append(cards.card(found.example_id, found.side, found.rank, found.score, share))
    return OutputSection(
        output=output,
        result=result,
        preview=preview,
        true_label=label,
        proponents=tuple(ranked["proponent"]),
        opponents=tuple(ranked["opponent"]),
        shares=tuple(evidence.shares),
        findings=tuple(evidence.findings),
        lineage=tuple(_path(recorded, output, ranked["proponent"][:LINEAGE_EXAMPLES], links)),
        groups=tuple(evidence.groups),
    )


def _path(
    recorded: RecordedAudit, output: Output, proponents: Sequence[ExampleCard], links: Links
) -> Iterator[LineageStep]:
    pinned, run = recorded.pinned, recorded.run
    yield LineageStep("output", output.output_id, output.output_id, href=recorded.trace_pages.get(output.output_id))
    for card in proponents:
        yield LineageStep("example", card.example_id, card.example_id, detail=f"proponent {card.rank}")
    for attribute in ("source", "licence"):
        for value in sorted({card.attributes.get(attribute, "") for card in proponents} - {""}):
            yield LineageStep(attribute, value, value)
    yield LineageStep(
        "dataset_version",
        pinned.dataset.dataset_version_id,
        pinned.dataset.name,
        detail=f"{pinned.dataset.example_count:,} examples",
    )
    yield LineageStep("run", run.run_id, run.name, href=links.run(run.experiment_id, run.run_id))
    yield LineageStep(
        "checkpoint",
        pinned.serving.checkpoint_id,
        f"{pinned.model_version.model_version_id}, step {pinned.serving.step}",
        href=links.model_version(pinned.model_version.name, pinned.model_version.version),
    )


def _overall(details: AuditDetails, cards: _Cards) -> Overall:
    def side(name: Side) -> tuple[ExampleCard, ...]:
        found = [influence for influence in details.influences if influence.side == name]
        return tuple(cards.card(i.example_id, name, i.rank, None, i.share) for i in found[:OVERALL_CARDS])

    shares = tuple(share for share in details.shares if share.output_id is None)
    groups = tuple(part for part in details.group_contributions if part.output_id is None)
    return Overall(shares, side("proponent"), side("opponent"), groups)


def _trust(recorded: RecordedAudit) -> Trust:
    details, coverage = recorded.details, recorded.index.coverage
    method = find_method(details.audit.method)
    parameters = details.audit.parameters
    damping = ""
    if "relative_damping" in parameters:
        spectrum = "all groups together" if {"spectrum", "kernel", "solutions"} & set(method.needs) else "each group"
        damping = f"{parameters['relative_damping']:g} × mean eigenvalue of {spectrum}"
        if parameters["absolute_damping"]:
            damping += f" + {parameters['absolute_damping']:g}"
    elif "horizon" in parameters:
        damping = f"none: a horizon of {parameters['horizon']:g} (learning rate × steps) takes its place"
    left_out = list(details.method_notes.get("warnings", ()))
    if coverage.quarantined:
        left_out.append(f"{len(coverage.quarantined)} training examples were quarantined and have no score.")
    if coverage.uncovered:
        left_out.append(f"Parameters without a rule are not measured: {', '.join(coverage.uncovered)}.")
    return Trust(
        fidelity=recorded.fidelity,
        coverage=coverage,
        method=method.name,
        method_description=" ".join(filter(None, [method.description, question_of(details.audit, recorded.weighting)])),
        method_source=method.source,
        curvature_kind=parameters.get("curvature"),
        damping=damping,
        weighting=recorded.weighting,
        meaning_of_scores=str(details.method_notes["meaning_of_scores"]),
        left_out=tuple(left_out),
        quarantined_outputs=recorded.refused,
        not_reproduced=tuple(result.output_id for result in details.results if not result.reproduced),
        fidelity_notes=tuple(fidelity_notes(recorded.fidelity, recorded.fidelity_alone)),
    )


def _tombstone(event: int) -> Preview:
    return Preview("text", text=f"erased by event {event}")


def _signed(signature: AuditSignature | None) -> SignedRoot | None:
    if signature is None:
        return None
    return SignedRoot(signature.public_key_sha256, signature.public_key, signature.statement, signature.signature)


def _title(details: AuditDetails) -> str:
    return f"Audit of {details.model_version.name}, version {details.model_version.version}"
