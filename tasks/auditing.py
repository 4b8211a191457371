"""Audit: measure outputs, score every training example against them exactly, apply the policy, record."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from prefect import task
from prefect.cache_policies import NO_CACHE
from safetensors.torch import load_file
from torch import Tensor, nn

from gradtrail.attribution.capture import compute_features
from gradtrail.attribution.curvature import (
    BlockCurvature,
    default_curvature_kind,
    empirical_curvature,
    model_curvature,
)
from gradtrail.attribution.features import FeaturePlan, FeatureRows, plan_from_config
from gradtrail.attribution.methods import find_method, prepare_queries
from gradtrail.attribution.scoring import Ranked, overall_influence, score, shares
from gradtrail.errors import DataError, NotFoundError, StoreError
from gradtrail.lineage import queries
from gradtrail.nouns import (
    Attribution,
    Audit,
    Example,
    ExampleInfluence,
    Index,
    Output,
    OutputResult,
    Side,
    Target,
    Weighting,
)
from gradtrail.reports.policies import evaluate, load_policy
from gradtrail.storage.checkpoints import write_safetensors
from gradtrail.storage.gradients import IndexTable
from gradtrail.storage.outputs import payload_record
from gradtrail.tasks.indexing import MEASURE_BATCH
from gradtrail.tasks.models import PinnedModel, pinned_model
from gradtrail.tasks.policy_facts import policy_facts
from gradtrail.tasks.progress import progress_bar
from gradtrail.tasks.recorded import recorded_index, recorded_model_version
from gradtrail.tasks.workspace import Workspace

OVERALL_TOP = 50
PERMUTATIONS = 200
MEASURING = "measuring"


@dataclass(frozen=True)
class AuditOptions:
    """How an audit scores.

    Attributes:
        method: name in the registry of methods; see `gradtrail methods`.
        target: what is measured of an output: what the model `emitted`, or the true `label`.
        top_k: proponents and opponents kept an output.
        curvature: kind of curvature for methods that need one; empty picks `fisher` where the adapter can sample.
        relative_damping: part of the mean eigenvalue added to the curvature.
        absolute_damping: absolute part, for example the objective's ridge.
        device: where the outputs are measured.
    """

    method: str = "influence"
    target: Target = "emitted"
    top_k: int = 10
    curvature: str = ""
    relative_damping: float = 1.0
    absolute_damping: float = 0.0
    device: str = "cpu"


@dataclass(frozen=True)
class MeasuredOutput:
    """An output as the pinned checkpoint sees it."""

    output_id: str
    prediction: str
    reproduced: bool


@task(cache_policy=NO_CACHE)
def ready_index(workspace: Workspace, model_version_id: str) -> str:
    """The newest index of the serving checkpoint.

    Raises:
        NotFoundError: if none was built; it says how.
    """
    with workspace.ledger().read() as connection:
        model_version = recorded_model_version(connection, model_version_id)
        found = queries.indexes_of(connection, model_version.checkpoint_ids[-1])
    found = [index for index in found if index.dataset_version_id == model_version.dataset_version_id]
    if not found:
        raise NotFoundError(
            f"The model version {model_version_id} has no index of its training data yet.",
            f"Build it: gradtrail index {model_version_id}.",
        )
    return found[-1].index_id


@task(cache_policy=NO_CACHE)
def measure_outputs(
    workspace: Workspace, model_version_id: str, index_id: str, output_ids: Sequence[str], options: AuditOptions
) -> list[MeasuredOutput]:
    """Store φ(q) of every output beside the index.

    An output that cannot be measured is quarantined with its cause; one without a label waits while labels are asked.
    """
    pinned = pinned_model(workspace, model_version_id)
    _, plan, table = _open(workspace, pinned, index_id)
    model = pinned.load(pinned.serving).to(options.device)
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
                    measured += _measure(pinned, model, plan, table, piece, options)
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
    index_id: str,
    measured: Sequence[MeasuredOutput],
    options: AuditOptions,
) -> str:
    """Score all training examples against the measured outputs, apply the policy, record the audit; returns its id."""
    pinned = pinned_model(workspace, model_version_id)
    index, plan, table = _open(workspace, pinned, index_id)
    policy = load_policy(Path(workspace.policy) if workspace.policy else None)
    weighting = Weighting()
    parameters = _parameters(pinned, options)
    audit = Audit(
        outputs=tuple((m.output_id, options.target) for m in measured),
        model_version_id=model_version_id,
        index_ids=(index_id,),
        method=options.method,
        parameters=parameters,
        weighting_id=weighting.weighting_id,
        policy_sha256=policy.sha256,
    )
    rows = stored_rows(table, index)
    query_rows = _stored_queries(table, [m.output_id for m in measured], options.target)
    curvature = None
    if "curvature" in parameters:
        curvature = _curvature(workspace, pinned, index, plan, rows, str(parameters["curvature"]), options)
    prepared = prepare_queries(
        options.method,
        query_rows,
        plan,
        weighting,
        curvature=curvature,
        relative_damping=options.relative_damping,
        absolute_damping=options.absolute_damping,
    )
    result = score(prepared, rows, top_k=options.top_k)
    overall = overall_influence(prepared, rows, result, top_k=OVERALL_TOP, permutations=PERMUTATIONS)
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
    ledger = workspace.ledger()
    with ledger.read() as connection:
        named = {a.example_id for a in attributions} | {e.example_id for e in influences}
        examples = queries.examples(connection, index.dataset_version_id, sorted(named))
    attributes = {example_id: dict(found.attributes) for example_id, found in examples.items()}
    facts = policy_facts(results, attributions, measured_shares, influences, attributes, index.coverage)
    ledger.record_weighting(weighting)
    ledger.record_audit(
        audit,
        method_notes={
            "meaning_of_scores": pinned.adapter.meaning_of_scores,
            "curvature_examples": curvature.example_count if curvature else 0,
        },
        results=results,
        attributions=attributions,
        shares=measured_shares,
        influences=influences,
        findings=evaluate(policy, facts),
    )
    return audit.audit_id


def output_example(pinned: PinnedModel, output: Output, record: Mapping[str, Any], target: Target) -> Example:
    """An observed output as something with a loss, under the output's own id.

    Raises:
        DataError: if the record lacks what the adapter needs.
    """
    example = pinned.adapter.output_to_example(record, target)
    return Example(output.output_id, example.inputs, example.target, example.attributes)


def stored_rows(table: IndexTable, index: Index) -> Callable[[], Iterator[FeatureRows]]:
    """The index's rows at its pinned version, as often as a method needs a pass over them."""

    def stream() -> Iterator[FeatureRows]:
        for batch in table.stream(version=index.table_version):
            yield FeatureRows(
                example_ids=batch.example_ids,
                vectors=_view(batch.vectors),
                losses=_view(batch.losses),
                squared_norms=_view(batch.squared_norms),
                attributes=batch.attributes,
            )

    return stream


def _view(array: NDArray[Any]) -> Tensor:
    with warnings.catch_warnings():
        # Scoring only reads, so that Arrow's read-only memory needs no copy.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)


def _sides(proponents: Ranked, opponents: Ranked) -> tuple[tuple[Side, Ranked], tuple[Side, Ranked]]:
    return ("proponent", proponents), ("opponent", opponents)


def _open(workspace: Workspace, pinned: PinnedModel, index_id: str) -> tuple[Index, FeaturePlan, IndexTable]:
    with workspace.ledger().read() as connection:
        index = recorded_index(connection, index_id)
    plan = plan_from_config(pinned.load(pinned.serving), index.feature_config)
    table = workspace.gradients().existing(index_id)
    if table is None:
        raise StoreError(
            f"The gradient table of index {index_id} is gone from {workspace.gradients_uri}.",
            "Restore it from a backup, or point gradients_uri to where it is.",
        )
    return index, plan, table


def _indexed(pinned: PinnedModel, index: Index) -> Iterator[Example]:
    data = pinned.adapter.training_data()
    examples = (data[position] for position in range(len(data)))
    return (example for example in examples if example.example_id not in index.coverage.quarantined)


def _stored_queries(table: IndexTable, output_ids: Sequence[str], target: Target) -> FeatureRows:
    stored = table.queries(output_ids)
    kept = [row for row, found in enumerate(stored.targets) if found == target]
    return FeatureRows(
        example_ids=[stored.output_ids[row] for row in kept],
        vectors=torch.tensor(stored.vectors[kept]),
        losses=torch.tensor(stored.losses[kept]),
        squared_norms=torch.tensor(stored.squared_norms[kept]),
    )


def _measure(
    pinned: PinnedModel,
    model: nn.Module,
    plan: FeaturePlan,
    table: IndexTable,
    examples: list[Example],
    options: AuditOptions,
) -> list[MeasuredOutput]:
    rows = compute_features(pinned.adapter, model, examples, plan, target=options.target, device=options.device)
    table.put_queries(
        output_ids=rows.example_ids,
        targets=[options.target] * len(examples),
        vectors=rows.vectors.cpu().numpy(),
        losses=rows.losses.cpu().numpy(),
        squared_norms=rows.squared_norms.cpu().numpy(),
    )
    batch = pinned.adapter.collate(examples).to(options.device)
    with torch.no_grad():
        reproduced = pinned.adapter.reproduced(pinned.adapter.outputs(model, batch), batch)
    return [
        MeasuredOutput(example.example_id, pinned.adapter.target_text(example.target), same)
        for example, same in zip(examples, reproduced, strict=True)
    ]


def _parameters(pinned: PinnedModel, options: AuditOptions) -> dict[str, Any]:
    parameters: dict[str, Any] = {"top_k": options.top_k, "overall_top": OVERALL_TOP, "permutations": PERMUTATIONS}
    if "curvature" in find_method(options.method).needs:
        parameters |= {
            "curvature": options.curvature or default_curvature_kind(pinned.adapter),
            "relative_damping": options.relative_damping,
            "absolute_damping": options.absolute_damping,
        }
    return parameters


def _curvature(
    workspace: Workspace,
    pinned: PinnedModel,
    index: Index,
    plan: FeaturePlan,
    rows: Callable[[], Iterator[FeatureRows]],
    kind: str,
    options: AuditOptions,
) -> BlockCurvature:
    """Fitted once an index and kind, then read from its file."""
    path = workspace.curvatures / f"{index.index_id}-{kind}.safetensors"
    if path.is_file():
        return BlockCurvature.from_tensors(load_file(path))
    if kind == "empirical":
        fitted = empirical_curvature(rows(), plan)
    else:
        model = pinned.load(pinned.serving).to(options.device)
        fitted = model_curvature(
            pinned.adapter,
            model,
            _indexed(pinned, index),
            plan,
            kind=kind,
            seed=0,
            batch_size=MEASURE_BATCH,
            device=options.device,
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_safetensors(fitted.to_tensors(), path)
    return fitted
