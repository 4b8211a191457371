"""Audit: measure outputs, score every training example against them exactly, apply the policy, record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from prefect import task
from prefect.cache_policies import NO_CACHE
from torch import nn

from gradtrail.attribution.capture import compute_features
from gradtrail.attribution.scoring import Ranked, overall_of_pass, score_pass, shares
from gradtrail.digests import sha256_json
from gradtrail.errors import DataError, NotFoundError, StoreError
from gradtrail.lineage import queries, withdrawals
from gradtrail.lineage.earlier_shares import earlier_shares
from gradtrail.nouns import (
    Attribution,
    Audit,
    Example,
    ExampleInfluence,
    Output,
    OutputResult,
    Side,
    Target,
)
from gradtrail.reports.policies import EarlierAudit, evaluate, load_policy
from gradtrail.storage.outputs import payload_record
from gradtrail.tasks.beyond_audit import BeyondAudit, asked_by, largest_self_influences, likeness_asked_for
from gradtrail.tasks.group_contributions import audited_groups
from gradtrail.tasks.indexing import MEASURE_BATCH
from gradtrail.tasks.measured_fidelity import HorizonName, audited_fidelity
from gradtrail.tasks.models import PinnedModel, pinned_model
from gradtrail.tasks.opened import OpenIndex, open_index
from gradtrail.tasks.policy_facts import policy_facts
from gradtrail.tasks.preparing import MethodOptions, PreparedAudit, method_parameters, prepare_audit
from gradtrail.tasks.progress import progress_bar
from gradtrail.tasks.weightings import found_weighting
from gradtrail.tasks.workspace import Workspace

OVERALL_TOP = 50
PERMUTATIONS = 200
MEASURING = "measuring"
AUTO = "auto"
DEFAULT_METHOD = "influence"


@dataclass(frozen=True)
class AuditOptions:
    """How an audit scores.

    Attributes:
        method: name in the registry of methods; see `gradtrail methods`. `auto` is what a calibration found best, else
            the default method.
        target: what is measured of an output: what the model `emitted`, or the true `label`.
        top_k: proponents and opponents kept an output.
        curvature: kind of curvature for methods that need one; empty picks `fisher` where the adapter can sample.
        relative_damping: part of the mean eigenvalue added to the curvature.
        absolute_damping: absolute part, for example the objective's ridge.
        horizon: learning rate × steps of further training that method `horizon` speaks about; 0 is 1 / damping.
        every_checkpoint: make an ensemble over all checkpoints, for methods that can (trak).
        named_horizon: `now` or `training`, as a calibration fitted them to short and long further training; empty asks
            for neither.
        weighting: `auto` is what the calibration chose with the method, else uniform; `uniform`, the beginning of a
            weighting's id, or `aspect:ATTRIBUTE`.
        index: beginning of the id of the index to score; empty takes the calibrated one, else the newest.
        device: where the outputs are measured.
    """

    method: str = AUTO
    target: Target = "emitted"
    top_k: int = 10
    curvature: str = ""
    relative_damping: float = 1.0
    absolute_damping: float = 0.0
    device: str = "cpu"
    horizon: float = 0.0
    every_checkpoint: bool = False
    named_horizon: HorizonName = ""
    weighting: str = AUTO
    index: str = ""

    @property
    def method_options(self) -> MethodOptions:
        """The part that says how the method works."""
        return MethodOptions(
            self.method,
            self.curvature,
            self.relative_damping,
            self.absolute_damping,
            self.horizon,
            self.device,
            self.target,
        )


@dataclass(frozen=True)
class MeasuredOutput:
    """An output as the pinned checkpoint sees it."""

    output_id: str
    prediction: str
    reproduced: bool


@task(cache_policy=NO_CACHE)
def measure_outputs(
    workspace: Workspace,
    model_version_id: str,
    index_ids: Sequence[str],
    output_ids: Sequence[str],
    options: AuditOptions,
) -> list[MeasuredOutput]:
    """Store φ(q) of every output beside each index, the serving checkpoint's last.

    An output that cannot be measured is quarantined with its cause; one without a label waits while labels are asked.
    """
    pinned = pinned_model(workspace, model_version_id)
    opened = [open_index(workspace, pinned, index_id) for index_id in index_ids]
    models = [pinned.load(each.checkpoint).to(options.device) for each in opened]
    payloads, ledger = workspace.payloads(), workspace.ledger()
    with ledger.read() as connection:
        outputs = queries.outputs(connection, output_ids)
    measured: list[MeasuredOutput] = []
    with progress_bar("measuring outputs", len(outputs)) as bar:
        for start in range(0, len(outputs), MEASURE_BATCH):
            chunk = outputs[start : start + MEASURE_BATCH]
            examples = []
            for output in chunk:
                try:
                    record = payload_record(payloads.get(output.payload_sha256))
                    if options.target == "label" and record.get("label") is None:
                        continue
                    examples.append(output_example(pinned, output, record, options.target))
                except (DataError, NotFoundError, StoreError) as error:
                    ledger.record_quarantine(MEASURING, output.output_id, str(error))
            pieces = [examples] if examples else []
            while pieces:
                piece = pieces.pop(0)
                try:
                    measured += _measure(pinned, models, opened, piece, options)
                except DataError as error:
                    if len(piece) == 1:
                        ledger.record_quarantine(MEASURING, piece[0].example_id, str(error))
                    else:
                        pieces = [[example] for example in piece] + pieces
            bar.advance(len(chunk))
    return measured


@task(cache_policy=NO_CACHE)
def score_outputs(
    workspace: Workspace,
    model_version_id: str,
    index_ids: Sequence[str],
    measured: Sequence[MeasuredOutput],
    options: AuditOptions,
) -> str:
    """Score all training examples against the measured outputs, apply the policy, record the audit; returns its id."""
    pinned = pinned_model(workspace, model_version_id)
    opened = [open_index(workspace, pinned, index_id) for index_id in index_ids]
    index = opened[-1].index
    policy = load_policy(Path(workspace.policy) if workspace.policy else None)
    weighting = found_weighting(workspace, model_version_id, options.weighting)
    method = options.method_options
    parameters = {
        "top_k": options.top_k,
        "overall_top": OVERALL_TOP,
        "permutations": PERMUTATIONS,
        **method_parameters(pinned, method, [each.checkpoint for each in opened]),
    }
    if options.named_horizon:
        parameters["named_horizon"] = options.named_horizon
    asked = asked_by(policy)
    with workspace.ledger().read() as connection:
        withdrawn = withdrawals.withdrawn(connection)
        history = earlier_shares(
            connection,
            pinned.model_version.name,
            options.method,
            options.target,
            [m.output_id for m in measured],
            asked.earlier_audits,
        )
    if withdrawn.values or withdrawn.example_ids:
        # What is withdrawn decides what is found: without it, an audit made again after a withdrawal had the old id.
        parameters["withdrawn_sha256"] = withdrawn.sha256
    if history:
        parameters["history_sha256"] = sha256_json([audit_id for audit_id, _ in history])
    audit = Audit(
        outputs=tuple((m.output_id, options.target) for m in measured),
        model_version_id=model_version_id,
        index_ids=tuple(index_ids),
        method=options.method,
        parameters=parameters,
        weighting_id=weighting.weighting_id,
        policy_sha256=policy.sha256,
    )
    measured_ids = [m.output_id for m in measured]
    output_queries = [each.queries(measured_ids, options.target) for each in opened]

    def examples_of(output_ids: Sequence[str]) -> list[Example]:
        return _output_examples(workspace, pinned, output_ids, options.target)

    prepared = prepare_audit(workspace, pinned, opened, output_queries, method, parameters, weighting, examples_of)
    query_rows = prepared.queries
    result = score_pass(prepared.scoring, top_k=options.top_k)
    overall = overall_of_pass(prepared.scoring, result, top_k=OVERALL_TOP, permutations=PERMUTATIONS)
    by_id = {m.output_id: m for m in measured}
    results = [
        OutputResult(
            output_id=output_id,
            prediction=by_id[output_id].prediction,
            loss=float(query_rows.losses[i]),
            reproduced=by_id[output_id].reproduced,
            proponent_mass=float(result.positive_mass[i]),
            opponent_mass=float(result.negative_mass[i]),
        )
        for i, output_id in enumerate(query_rows.example_ids)
    ]
    attributions = [
        Attribution(output_id, example_id, side, rank, value)
        for i, output_id in enumerate(query_rows.example_ids)
        for side, ranked in _sides(result.proponents[i], result.opponents[i])
        for rank, (example_id, value) in enumerate(ranked, start=1)
    ]
    influences = [
        ExampleInfluence(example_id, side, rank, value)
        for side, ranked in _sides(overall.proponents, overall.opponents)
        for rank, (example_id, value) in enumerate(ranked, start=1)
    ]
    measured_shares = shares(result, overall, query_rows.example_ids)
    self_influences = largest_self_influences(opened[-1]) if asked.self_influence else ()
    ledger = workspace.ledger()
    with ledger.read() as connection:
        named = {a.example_id for a in attributions} | {e.example_id for e in influences}
        named |= {example_id for example_id, _ in self_influences}
        sources = {output.output_id: output.source for output in queries.outputs(connection, measured_ids)}
        examples = queries.examples(connection, index.dataset_version_id, sorted(named))
        fidelity = audited_fidelity(
            connection,
            index.checkpoint_id,
            audit.method,
            parameters,
            audit.weighting_id,
            index_ids,
            options.target,
        )
    attributes = {example_id: dict(found.attributes) for example_id, found in examples.items()}
    likeness = likeness_asked_for(
        asked, opened[-1], output_queries[-1], attributions, examples_of, pinned.adapter, examples
    )
    earlier = tuple(EarlierAudit(audit_id, known) for audit_id, known in history)
    facts = policy_facts(
        results,
        attributions,
        measured_shares,
        influences,
        attributes,
        index.coverage,
        fidelity,
        withdrawn,
        BeyondAudit(likeness, earlier, self_influences, sources),
    )
    ledger.record_weighting(weighting)
    ledger.record_audit(
        audit,
        method_notes={
            "meaning_of_scores": pinned.adapter.meaning_of_scores,
            "curvature_examples": prepared.curvature_examples,
            "warnings": audit_warnings(prepared),
        },
        results=results,
        attributions=attributions,
        shares=measured_shares,
        influences=influences,
        findings=evaluate(policy, facts),
        group_contributions=audited_groups(opened, prepared.members, attributions, audit.method),
    )
    return audit.audit_id


def output_example(pinned: PinnedModel, output: Output, record: Mapping[str, Any], target: Target) -> Example:
    """An observed output as something with a loss, under the output's own id.

    Raises:
        DataError: if the record lacks what the adapter needs.
    """
    example = pinned.adapter.output_to_example(record, target)
    return Example(output.output_id, example.inputs, example.target, example.attributes)


def _output_examples(
    workspace: Workspace, pinned: PinnedModel, output_ids: Sequence[str], target: Target
) -> list[Example]:
    """Recorded outputs as examples again, in the order of their ids."""
    payloads = workspace.payloads()
    with workspace.ledger().read() as connection:
        found = {output.output_id: output for output in queries.outputs(connection, output_ids)}
    outputs = [found[output_id] for output_id in output_ids]
    return [output_example(pinned, each, payload_record(payloads.get(each.payload_sha256)), target) for each in outputs]


def _sides(proponents: Ranked, opponents: Ranked) -> tuple[tuple[Side, Ranked], tuple[Side, Ranked]]:
    return ("proponent", proponents), ("opponent", opponents)


def recorded_warnings(workspace: Workspace, audit_id: str) -> tuple[str, ...]:
    """What the report of an audit warns about its method, for the command line."""
    with workspace.ledger().read() as connection:
        return tuple(queries.audit_details(connection, audit_id).method_notes.get("warnings", ()))


def audit_warnings(prepared: PreparedAudit) -> list[str]:
    """What the report must say about this method on this index, as whole sentences; complete once it has scored."""
    warnings = list(prepared.warnings)
    if prepared.missing:
        warnings.append(
            f"{len(prepared.missing):,} training examples are not in the index of every checkpoint and have no score."
        )
    return warnings


def _measure(
    pinned: PinnedModel,
    models: Sequence[nn.Module],
    opened: Sequence[OpenIndex],
    examples: list[Example],
    options: AuditOptions,
) -> list[MeasuredOutput]:
    features = [
        compute_features(pinned.adapter, model, examples, each.plan, target=options.target, device=options.device)
        for model, each in zip(models, opened, strict=True)
    ]
    for each, rows in zip(opened, features, strict=True):
        each.table.put_queries(
            output_ids=rows.example_ids,
            targets=[options.target] * len(examples),
            vectors=rows.vectors.cpu().numpy(),
            losses=rows.losses.cpu().numpy(),
            squared_norms=rows.squared_norms.cpu().numpy(),
        )
    batch = pinned.adapter.collate(examples).to(options.device)
    with torch.no_grad():
        reproduced = pinned.adapter.reproduced(pinned.adapter.outputs(models[-1], batch), batch)
    return [
        MeasuredOutput(example.example_id, pinned.adapter.target_text(example.target), same)
        for example, same in zip(examples, reproduced, strict=True)
    ]
