"""Reports: written from the ledger alone, so that an interrupted audit's report can be completed at any time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE

from gradtrail import __version__
from gradtrail.attribution.methods import METHODS
from gradtrail.digests import sha256_file, short
from gradtrail.errors import GradtrailError, NotFoundError
from gradtrail.lineage import queries
from gradtrail.lineage.queries import AuditDetails, RecordedExample
from gradtrail.nouns import Finding, Index, Output, OutputResult, Preview, Run, Share, Side, Weighting
from gradtrail.reports.model import AuditReport, ExampleCard, LineageStep, OutputSection, Overall, Trust
from gradtrail.reports.write import write_report
from gradtrail.storage.audit_runs import (
    AUDIT_TAG,
    AuditRun,
    Links,
    describe_version,
    open_audit_run,
    publish_audit,
)
from gradtrail.storage.outputs import payload_record
from gradtrail.tasks.auditing import output_example
from gradtrail.tasks.datasets import ExampleFinder
from gradtrail.tasks.models import PinnedModel, pinned_model
from gradtrail.tasks.workspace import Workspace

OVERALL_CARDS = 12


@dataclass(frozen=True)
class FoundReport:
    """A report on disk, and its page in MLflow (empty before it is linked)."""

    audit_id: str
    html: str
    mlflow_url: str
    rewritten: bool


@task(cache_policy=NO_CACHE)
def unfinished_audit_ids(workspace: Workspace, model_version_id: str) -> list[str]:
    """Audits that an interrupted run recorded without getting to the end of their report."""
    with workspace.ledger().read() as connection:
        return [
            audit.audit_id
            for audit in queries.audits(connection, model_version_id)
            if queries.report_of(connection, audit.audit_id) is None
        ]


@task(cache_policy=NO_CACHE)
def write_audit_report(workspace: Workspace, audit_id: str) -> str:
    """Write HTML, JSON and Parquet of an audit; returns the path of the HTML file."""
    return str(write_report(build_report(workspace, audit_id), workspace.reports).html)


@task(cache_policy=NO_CACHE)
def link_report(workspace: Workspace, audit_id: str) -> str:
    """Put the audit into MLflow, link it from version and run, and record the report as done; returns the run id."""
    report = build_report(workspace, audit_id)
    files = write_report(report, workspace.reports)
    registry = workspace.registry()
    run = _audit_run(workspace, audit_id, report.title)
    links = Links(workspace.mlflow_url)
    publish_audit(
        registry,
        run,
        note=_note(report, links, run),
        tags={
            AUDIT_TAG: audit_id,
            "gradtrail.model_version": report.model_version.model_version_id,
            "gradtrail.checkpoint": report.checkpoint.checkpoint_id,
            "gradtrail.dataset_version": report.dataset.dataset_version_id,
            "gradtrail.index": report.audit.index_ids[0],
        },
        parameters={"method": report.audit.method, **{k: str(v) for k, v in report.audit.parameters.items()}},
        metrics=_metrics(report),
        files=[files.html, files.json, files.parquet],
        dataset=report.dataset,
    )
    version = registry.resolve(report.model_version.model_version_id)
    page = links.artifact(run.experiment_id, run.run_id, files.html.name)
    describe_version(
        registry,
        version,
        f"**gradtrail** · newest audit {short(audit_id)} of {report.created_at:%Y-%m-%d %H:%M} UTC: "
        f"[report]({page}) · [audit run]({links.run(run.experiment_id, run.run_id)})",
    )
    registry.tag_version(version, {AUDIT_TAG: audit_id})
    workspace.ledger().record_report(
        audit_id,
        html_uri=str(files.html),
        files=files.sha256,
        mlflow_run_id=run.run_id,
        mlflow_experiment_id=run.experiment_id,
    )
    return run.run_id


def ensure_report(workspace: Workspace, audit_id: str) -> FoundReport:
    """Find an audit's report, by id, beginning of an id, or the newest; write it again if its file is gone.

    Raises:
        NotFoundError: if there is no such audit, or none at all.
    """
    with workspace.ledger().read() as connection:
        audit = queries.find_audit(connection, audit_id) if audit_id else queries.latest_audit(connection)
        if audit is None:
            raise NotFoundError("There is no audit yet.", "Run one: gradtrail audit NAME@alias, or gradtrail demo.")
        recorded = queries.report_of(connection, audit.audit_id)
    path = workspace.reports / audit.audit_id / "report.html"
    rewritten = not path.is_file() or (recorded is not None and sha256_file(path) != recorded.files[path.name])
    if rewritten:
        path = write_report(build_report(workspace, audit.audit_id), workspace.reports).html
    url = ""
    if recorded is not None and recorded.mlflow_run_id and recorded.mlflow_experiment_id:
        links = Links(workspace.mlflow_url)
        url = links.artifact(recorded.mlflow_experiment_id, recorded.mlflow_run_id, path.name)
    return FoundReport(audit.audit_id, str(path), url, rewritten)


def build_report(workspace: Workspace, audit_id: str) -> AuditReport:
    """Gather an audit's report from the ledger, the payloads and the adapter's previews."""
    with workspace.ledger().read() as connection:
        details = queries.audit_details(connection, audit_id)
        audit = details.audit
        index = queries.get_index(connection, audit.index_ids[0])
        named = {a.example_id for a in details.attributions} | {e.example_id for e in details.influences}
        examples = queries.examples(connection, index.dataset_version_id, sorted(named))
        run = queries.training_run(connection, details.model_version.run_id)
        outputs = queries.outputs(connection, [output_id for output_id, _ in audit.outputs])
        attribute_counts = queries.attribute_counts(connection, index.dataset_version_id)
        weighting = queries.weighting(connection, audit.weighting_id)
        quarantined = queries.quarantined(connection, before=details.event_sequence)
    pinned = pinned_model(workspace, audit.model_version_id)
    cards = _Cards(pinned, examples)
    title = f"Audit of {pinned.model_version.name}, version {pinned.model_version.version}"
    audit_run = _audit_run(workspace, audit_id, title)
    links = Links(workspace.mlflow_url)
    findings_of = _by_output(details.findings)
    sections = [
        _section(workspace, pinned, output, details, cards, run, findings_of.get(output.output_id, ()), links)
        for output in outputs
    ]
    return AuditReport(
        audit=audit,
        created_at=details.recorded_at,
        title=title,
        model_version=pinned.model_version,
        model_links={
            "Model version in MLflow": links.model_version(pinned.model_version.name, pinned.model_version.version),
            "Training run": links.run(run.experiment_id, run.run_id),
            "Audit run": links.run(audit_run.experiment_id, audit_run.run_id),
        },
        run=run,
        checkpoint=pinned.serving,
        dataset=pinned.dataset,
        attribute_counts=attribute_counts,
        trust=_trust(details, index, weighting, quarantined),
        findings=tuple(details.findings),
        overall=_overall(details, cards),
        outputs=tuple(sections),
        ledger_head=details.event_hash,
        preview_mode=workspace.preview,
        gradtrail_version=__version__,
    )


class _Cards:
    """Example cards, each example fetched and drawn once."""

    def __init__(self, pinned: PinnedModel, examples: Mapping[str, RecordedExample]) -> None:
        self._adapter = pinned.adapter
        self._examples = examples
        places = {key: (row.position, row.content_sha256) for key, row in examples.items()}
        self._find = ExampleFinder(pinned.adapter.training_data(), places)
        self._previews: dict[str, Preview | None] = {}

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

    def attributes(self, example_id: str) -> Mapping[str, str]:
        return self._examples[example_id].attributes


def _section(
    workspace: Workspace,
    pinned: PinnedModel,
    output: Output,
    details: AuditDetails,
    cards: _Cards,
    run: Run,
    findings: Iterable[Finding],
    links: Links,
) -> OutputSection:
    result = next(result for result in details.results if result.output_id == output.output_id)
    record: Mapping[str, Any] = {}
    preview = None
    try:
        record = payload_record(workspace.payloads().get(output.payload_sha256))
        preview = pinned.adapter.preview(output_example(pinned, output, record, output.target))
    except GradtrailError:
        preview = Preview("text", text="The payload of this output is no longer stored.")
    label = record.get("label")
    ranked: dict[str, list[ExampleCard]] = {"proponent": [], "opponent": []}
    mass = {"proponent": result.proponent_mass, "opponent": result.opponent_mass}
    for found in details.attributions:
        if found.output_id == output.output_id:
            share = abs(found.score) / mass[found.side] if mass[found.side] else None
            ranked[found.side].append(cards.card(found.example_id, found.side, found.rank, found.score, share))
    return OutputSection(
        output=output,
        result=result,
        preview=preview,
        true_label=None if label is None else pinned.adapter.target_text(label),
        proponents=tuple(ranked["proponent"]),
        opponents=tuple(ranked["opponent"]),
        shares=tuple(share for share in details.shares if share.output_id == output.output_id),
        findings=tuple(findings),
        lineage=tuple(_path(output, result, ranked["proponent"], pinned, run, links)),
    )


def _path(
    output: Output,
    result: OutputResult,
    proponents: list[ExampleCard],
    pinned: PinnedModel,
    run: Run,
    links: Links,
) -> Iterable[LineageStep]:
    yield LineageStep(
        "output", output.output_id, f"{output.output_id}: {result.prediction}", detail="what was produced"
    )
    for card in proponents[:3]:
        yield LineageStep("example", card.example_id, card.example_id, detail=f"proponent {card.rank}")
    for kind, attribute in (("source", "source"), ("licence", "licence")):
        for value in sorted({card.attributes.get(attribute, "") for card in proponents[:3]} - {""}):
            yield LineageStep(kind, value, value)
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
        found = sorted((i for i in details.influences if i.side == name), key=lambda influence: influence.rank)
        return tuple(cards.card(i.example_id, name, i.rank, None, i.share) for i in found[:OVERALL_CARDS])

    shares: tuple[Share, ...] = tuple(share for share in details.shares if share.output_id is None)
    return Overall(shares, side("proponent"), side("opponent"))


def _trust(details: AuditDetails, index: Index, weighting: Weighting, quarantined: Mapping[str, str]) -> Trust:
    method = METHODS[details.audit.method]
    parameters = details.audit.parameters
    damping = ""
    if "relative_damping" in parameters:
        damping = f"{parameters['relative_damping']:g} × mean eigenvalue of each group"
        if parameters["absolute_damping"]:
            damping += f" + {parameters['absolute_damping']:g}"
    left_out = []
    if index.coverage.quarantined:
        left_out.append(f"{len(index.coverage.quarantined)} training examples were quarantined and have no score.")
    if index.coverage.uncovered:
        left_out.append(f"Parameters without a rule are not measured: {', '.join(index.coverage.uncovered)}.")
    return Trust(
        fidelity=None,
        coverage=index.coverage,
        method=method.name,
        method_description=method.description,
        method_source=method.source,
        curvature_kind=parameters.get("curvature"),
        damping=damping,
        weighting=weighting,
        meaning_of_scores=str(details.notes["meaning_of_scores"]),
        left_out=tuple(left_out),
        quarantined_outputs=quarantined,
        not_reproduced=tuple(result.output_id for result in details.results if not result.reproduced),
    )


def _audit_run(workspace: Workspace, audit_id: str, title: str) -> AuditRun:
    return open_audit_run(workspace.registry(), audit_id, f"{title} ({short(audit_id)})")


def _by_output(findings: Iterable[Finding]) -> dict[str, tuple[Finding, ...]]:
    found: dict[str, tuple[Finding, ...]] = {}
    for finding in findings:
        if finding.output_id is not None:
            found[finding.output_id] = (*found.get(finding.output_id, ()), finding)
    return found


def _metrics(report: AuditReport) -> dict[str, float]:
    metrics = {
        "outputs": float(len(report.outputs)),
        "outputs_not_reproduced": float(len(report.trust.not_reproduced)),
        "coverage_parameters": report.trust.coverage.parameter_share,
        "coverage_examples": report.trust.coverage.example_share,
    }
    for severity in ("high", "medium", "low", "info"):
        metrics[f"findings_{severity}"] = float(sum(f.severity == severity for f in report.findings))
    for share in report.overall.shares:
        if share.side == "proponent" and share.attribute in ("source", "licence"):
            metrics[f"share {share.attribute} {_metric_name(share.value)}"] = share.share
    return metrics


def _metric_name(value: str) -> str:
    kept = "".join(c if c.isalnum() or c in "_-. /" else "_" for c in value)
    return kept[:100] or "unknown"


def _note(report: AuditReport, links: Links, run: AuditRun) -> str:
    version = report.model_version
    lines = [
        f"## {report.title}",
        f"[Open the report]({links.artifact(run.experiment_id, run.run_id, 'report.html')}) · "
        f"[model version]({links.model_version(version.name, version.version)}) · "
        f"[training run]({links.run(report.run.experiment_id, report.run.run_id)})",
        "",
        f"{len(report.outputs)} outputs, method `{report.audit.method}`, "
        f"checkpoint `{short(report.checkpoint.checkpoint_id)}`, "
        f"dataset version `{short(report.dataset.dataset_version_id)}`.",
        "",
    ]
    overall = [finding for finding in report.findings if finding.output_id is None]
    lines += [f"- **{finding.severity}**: {finding.message}" for finding in overall] or ["No findings overall."]
    return "\n".join(lines)
