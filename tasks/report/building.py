"""The report of an audit, gathered from the ledger, the payloads and the adapter's previews."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gradtrail import __version__
from gradtrail.attribution.adapters.base import ModelAdapter
from gradtrail.attribution.methods.registry import METHODS
from gradtrail.attribution.methods.spec import MethodSpec
from gradtrail.attribution.scoring.permutation_intervals import INTERVALS_TOGETHER
from gradtrail.errors import DataError, NotFoundError
from gradtrail.lineage.read.answers import AuditDetails, RecordedExample
from gradtrail.lineage.verify.signatures import AuditSignature
from gradtrail.nouns import Example, Output, Preview, Side
from gradtrail.reports.model import AuditReport, ExampleCard, LineageStep, OutputSection, Overall, SignedRoot, Trust
from gradtrail.reports.policies.registry import listed
from gradtrail.storage.files.payloads import PayloadStore
from gradtrail.storage.models.audit_runs import Links
from gradtrail.storage.sources.outputs import payload_record
from gradtrail.tasks.collect.outputs_as_examples import output_example
from gradtrail.tasks.core.datasets import ExampleFinder
from gradtrail.tasks.core.measured_fidelity import backed_fidelity, fidelity_notes, not_measured, question_of
from gradtrail.tasks.core.models import PinnedModel
from gradtrail.tasks.core.workspace import Workspace
from gradtrail.tasks.report.output_evidence import OutputEvidence, evidence_by_output
from gradtrail.tasks.report.reported_audits import ReportedAudit

LINEAGE_EXAMPLES = 3
OVERALL_CARDS = 12


def build_report(workspace: Workspace, recorded: ReportedAudit) -> AuditReport:
    """Gather an audit's report from the ledger, the payloads and the adapter's previews."""
    pinned, run, links = recorded.pinned, recorded.run, workspace.links()
    cards = _Cards(pinned, recorded.examples, recorded.erased)
    evidence = evidence_by_output(recorded.details)
    payloads, chain = workspace.payloads(), tuple(_chain(recorded, links))
    return AuditReport(
        audit=recorded.details.audit,
        created_at=recorded.details.recorded_at,
        title=recorded.title,
        model_version=pinned.model_version,
        model_links={
            "Model version": links.model_version(pinned.model_version.name, pinned.model_version.version),
            **({"Training run": links.training_run(run)} if run.is_in_mlflow else {}),
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
            _section(payloads, recorded, output, evidence[output.output_id], cards, chain)
            for output in recorded.outputs
        ),
        ledger_head=recorded.evidence.event_hash,
        audit_root=recorded.evidence.audit_root,
        signature=_signed(recorded.signature),
        preview_mode=workspace.preview,
        gradtrail_version=__version__,
        measured_with=recorded.index.measured_with,
        checks=recorded.index.checks,
    )


class _Cards:
    """Example cards, each example fetched and drawn once."""

    def __init__(self, pinned: PinnedModel, examples: Mapping[str, RecordedExample], erased: Mapping[str, int]) -> None:
        self._adapter = pinned.adapter
        self._examples = examples
        places = {key: (example.position, example.content_sha256) for key, example in examples.items()}
        self._find = ExampleFinder(pinned.training_data, places)
        self._previews: dict[str, Preview | None] = {name: _tombstone(event) for name, event in erased.items()}

    def card(self, example_id: str, side: Side, rank: int, score: float | None, share: float | None) -> ExampleCard:
        if example_id not in self._previews:
            self._previews[example_id] = _preview(self._adapter, self._find(example_id))
        recorded, preview = self._examples[example_id], self._previews[example_id]
        return ExampleCard(example_id, recorded.content_sha256, recorded.attributes, preview, score, rank, share, side)


def _section(
    payloads: PayloadStore,
    recorded: ReportedAudit,
    output: Output,
    evidence: OutputEvidence,
    cards: _Cards,
    chain: tuple[LineageStep, ...],
) -> OutputSection:
    adapter, result = recorded.pinned.adapter, evidence.result
    label, right, preview = None, None, None
    if output.output_id in recorded.erased:
        preview = _tombstone(recorded.erased[output.output_id])
    elif (payload := _payload(payloads, output)) is not None:
        record = payload_record(payload)
        preview = _preview(adapter, output_example(recorded.pinned, output, record, evidence.target))
        label, right = _label(recorded.pinned, output, record, result.prediction)
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
        lineage=(*_way(recorded, output, ranked["proponent"][:LINEAGE_EXAMPLES]), *chain),
        groups=tuple(evidence.groups),
        right=right,
        wording=adapter.wording(evidence.target),
    )


def _payload(payloads: PayloadStore, output: Output) -> bytes | None:
    """The payload of an output; None where it was deleted."""
    try:
        return payloads.get(output.payload_sha256)
    except NotFoundError:
        return None


def _preview(adapter: ModelAdapter, example: Example) -> Preview:
    try:
        return adapter.preview(example)
    except Exception as fault:
        return Preview("text", text=f"no preview: {type(fault).__name__}: {fault}")


def _label(pinned: PinnedModel, output: Output, record: Mapping[str, Any], said: str) -> tuple[str | None, bool | None]:
    """The true label in words and whether `said` is it; None where none is known, or what is given is no label."""
    if record.get("label") is None:
        return None, None
    try:
        target = output_example(pinned, output, record, "label").target
        return pinned.adapter.target_text(target), pinned.adapter.is_right(said, target)
    except DataError:
        return None, None


def _way(recorded: ReportedAudit, output: Output, proponents: Sequence[ExampleCard]) -> Iterator[LineageStep]:
    """From an output to its strongest examples, and to where those came from."""
    yield LineageStep("output", output.output_id, output.output_id, href=recorded.trace_pages.get(output.output_id))
    for card in proponents:
        yield LineageStep("example", card.example_id, card.example_id, detail=f"proponent {card.rank}")
    for attribute in ("source", "licence"):
        for value in sorted({card.attributes.get(attribute, "") for card in proponents} - {""}):
            yield LineageStep(attribute, value, value)


def _chain(recorded: ReportedAudit, links: Links) -> Iterator[LineageStep]:
    """From the dataset version to the checkpoint: the end of the way of every output of an audit."""
    pinned, run = recorded.pinned, recorded.run
    yield LineageStep(
        "dataset_version",
        pinned.dataset.dataset_version_id,
        pinned.dataset.name,
        detail=f"{pinned.dataset.example_count:,} examples",
    )
    yield LineageStep("run", run.run_id, run.name, href=links.training_run(run) or None)
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


def _trust(recorded: ReportedAudit) -> Trust:
    details, coverage = recorded.details, recorded.index.coverage
    method = METHODS.get(details.audit.method)
    described = method.description if method else "A method of another package, which is not loaded here."
    spec = MethodSpec.from_json(details.audit.parameters)
    segments = details.audit.parameters.get("segments", ())
    damping = ""
    if spec.damping is not None:
        joined = method is not None and any(need.joins_groups for need in method.needs)
        spectrum = "all groups together" if joined else "each group"
        damping = f"{spec.damping.relative:g} × mean eigenvalue of {spectrum}"
        if spec.damping.absolute:
            damping += f" + {spec.damping.absolute:g}"
    elif segments:
        lengths = ", ".join(f"{length:g}" for length in segments)
        damping = f"none: the segments of training take its place, {lengths} long (learning rate × steps)"
    elif spec.horizon is not None:
        damping = f"none: a horizon of {spec.horizon:g} (learning rate × steps) takes its place"
    left_out = list(details.method_notes.get("warnings", ()))
    if coverage.quarantined:
        left_out.append(f"{len(coverage.quarantined)} training examples were quarantined and have no score.")
    if coverage.left_out:
        left_out.append(f"Parameters without a rule are not measured: {', '.join(coverage.left_out)}.")
    if coverage.frozen:
        left_out.append(
            "Frozen parameters, which training does not move, have no part in the scores: "
            f"{listed(coverage.frozen)}. Coverage is counted over the others."
        )
    left_out += [
        f"{source.taken:,} of {source.seen:,} outputs that the source {source.source} has brought so far were taken to "
        f"be examined; sampling left out {source.sampled_out:,}."
        for source in recorded.sources
        if source.sampled_out
    ]
    return Trust(
        fidelity=backed_fidelity(recorded.fidelity),
        fidelity_not_measured=not_measured(recorded.fidelity),
        coverage=coverage,
        method=details.audit.method,
        method_description=" ".join(filter(None, [described, question_of(details.audit, recorded.weighting)])),
        method_source=method.source if method else details.audit.method,
        curvature_kind=spec.curvature,
        damping=damping,
        weighting=recorded.weighting,
        meaning_of_scores=str(details.method_notes["meaning_of_scores"]),
        left_out=tuple(left_out),
        quarantined_outputs=recorded.refused,
        not_reproduced=tuple(result.output_id for result in details.results if result.reproduced is False),
        fidelity_notes=tuple(fidelity_notes(recorded.fidelity, recorded.fidelity_alone)),
        intervals_together=details.method_notes.get("intervals") == INTERVALS_TOGETHER,
    )


def _tombstone(event: int) -> Preview:
    return Preview("text", text=f"erased by event {event}")


def _signed(signature: AuditSignature | None) -> SignedRoot | None:
    if signature is None:
        return None
    return SignedRoot(signature.public_key_sha256, signature.public_key, signature.statement, signature.signature)
