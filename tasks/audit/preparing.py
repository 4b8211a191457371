"""Prepare a method to score: the parameters that pin it, and what it needs, fitted once and kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from safetensors.torch import load

from gradtrail.attribution.curvature.blocks import BlockCurvature, DiagonalCurvature
from gradtrail.attribution.curvature.condition_numbers import conditioning, conditioning_warnings
from gradtrail.attribution.curvature.inverse_products import Solutions
from gradtrail.attribution.curvature.spectrum import Spectrum
from gradtrail.attribution.features.rows import GradientBatch
from gradtrail.attribution.methods.needs import KERNEL, LEARNING_RATE, NEEDS, SEGMENT, FittingData, Need
from gradtrail.attribution.methods.registry import find_method
from gradtrail.attribution.methods.rules import prepare_queries
from gradtrail.attribution.methods.spec import MethodSpec
from gradtrail.attribution.methods.unrolling import carried_rows
from gradtrail.attribution.scoring.batches import ScoringPass
from gradtrail.attribution.scoring.joint import Member, scoring_pass
from gradtrail.errors import UsageError
from gradtrail.lineage.read.pinned_files import recorded_before_pinning
from gradtrail.nouns import Checkpoint, Example, Target, Weighting
from gradtrail.storage.models.checkpoints import write_safetensors
from gradtrail.tasks.core.extensions import load_method, method_source
from gradtrail.tasks.core.kept_files import read_kept, write_kept
from gradtrail.tasks.core.models import PinnedModel
from gradtrail.tasks.core.workspace import Workspace
from gradtrail.tasks.index.opened import OpenIndex

_LARGE_RESIDUAL = 1e-2


@dataclass(frozen=True)
class PreparedAudit:
    """Ready to score: the pass over its members (one an index), the outputs as the serving checkpoint measured them,
    and what the report must say."""

    scoring: ScoringPass
    members: tuple[Member, ...]
    queries: GradientBatch
    curvature_examples: int
    warnings: tuple[str, ...]
    missing: set[str]


def method_parameters(pinned: PinnedModel, spec: MethodSpec, checkpoints: Sequence[Checkpoint]) -> dict[str, Any]:
    """What pins a method with a settled spec, beside what every audit has.

    Raises:
        UsageError: when a checkpoint was registered without what the method needs.
    """
    parameters = spec.parameters
    for need in find_method(spec.method).needs:
        parameters |= need.constants
        if need is SEGMENT:
            segments = training_segments(pinned, spec.horizon)
            parameters[need.recorded] = [segments[checkpoint.checkpoint_id] for checkpoint in checkpoints]
        elif need is LEARNING_RATE:
            parameters[need.recorded] = [_learning_rate(pinned, checkpoint) for checkpoint in checkpoints]
    return parameters


def prepare_audit(
    workspace: Workspace,
    pinned: PinnedModel,
    opened: Sequence[OpenIndex],
    output_queries: Sequence[GradientBatch],
    spec: MethodSpec,
    weighting: Weighting,
    examples_of: Callable[[Sequence[str]], list[Example]],
    *,
    target: Target,
    device: str = "cpu",
) -> PreparedAudit:
    """Fit or read what the method of a settled spec needs for each index, and prepare the outputs for it.

    `opened` and `output_queries` go together, the serving checkpoint last; `weighting` is the one that the spec names;
    `examples_of` gives outputs as examples. A method that carries its queries takes those of the serving checkpoint
    alone.
    """
    load_method(workspace, spec.method)
    method = find_method(spec.method)
    members: list[Member] = []
    warnings: list[str] = []
    examples = 0
    carried = output_queries[-1]
    for each, own in reversed(list(zip(opened, output_queries, strict=True))):
        rows = carried if method.carry else own
        data = fitting_data(pinned, each, spec, device)
        data = replace(data, queries=partial(examples_of, rows.example_ids), target=target)
        fitted = fitted_needs(workspace, each.index.index_id, data, spec)
        for need in fitted.values():
            if isinstance(need, Solutions):
                examples = each.index.coverage.indexed_examples
                if need.residual > _LARGE_RESIDUAL:
                    warnings.append(
                        f"Method {method.name} left a relative residual of {need.residual:.2g}: its scores are "
                        "only about so exact. A larger damping makes it smaller."
                    )
            elif isinstance(need, BlockCurvature | DiagonalCurvature | Spectrum):
                examples = need.example_count
                if spec.damping is not None:
                    warnings += conditioning_warnings(conditioning(need, each.plan, spec.damping), examples)
        if KERNEL.name in fitted and examples < each.index.coverage.indexed_examples:
            warnings.append(
                f"{each.index.coverage.indexed_examples - examples:,} examples are fitted so well that 1 − p is lost "
                "in rounding; the kernel leaves them out."
            )
        prepared = prepare_queries(
            spec, rows, each.plan, weighting, stored_weighting=each.plan.stored_weighting, **fitted
        )
        carried = carried_rows(rows, prepared)
        members.insert(0, Member(prepared, partial(each.rows, len(rows.example_ids))))
    missing: set[str] = set()
    scoring = scoring_pass(members, method.combination, missing.add)
    return PreparedAudit(scoring, tuple(members), output_queries[-1], examples, tuple(dict.fromkeys(warnings)), missing)


def fitting_data(pinned: PinnedModel, opened: OpenIndex, spec: MethodSpec, device: str) -> FittingData:
    """What the needs of a method are fitted on: one index and its checkpoint."""
    return FittingData(
        adapter=pinned.adapter,
        plan=opened.plan,
        rows=opened.rows,
        examples=partial(opened.examples, pinned),
        model=lambda: pinned.load(opened.checkpoint).to(device),
        learning_rate=partial(_learning_rate, pinned, opened.checkpoint),
        segment=lambda: training_segments(pinned, spec.horizon)[opened.checkpoint.checkpoint_id],
        device=device,
    )


def fitted_needs(workspace: Workspace, index_id: str, data: FittingData, spec: MethodSpec) -> dict[str, Any]:
    """What the method of a settled spec needs, by name: fitted once for each index where it is kept, then read."""
    return {need.name: _fitted(workspace, index_id, need, data, spec) for need in find_method(spec.method).needs}


def _fitted(workspace: Workspace, index_id: str, need: Need[Any], data: FittingData, spec: MethodSpec) -> Any:
    if need.form is None:
        return need.fit(data, spec)
    name = need.file_name.format(index_id=index_id, kind=spec.curvature)
    if NEEDS.get(need.name) is not need:
        # What another package fits depends on its source, too.
        name = "-".join((name, *method_source(workspace, spec.method).values()))
    path = workspace.curvatures / f"{name}.safetensors"
    kept = read_kept(workspace, path, partial(recorded_before_pinning, index_id=index_id))
    if kept is not None:
        return need.form.from_tensors(load(kept), spec.curvature)
    fitted = need.fit(data, spec)
    write_kept(workspace, path, partial(write_safetensors, fitted.to_tensors()))
    return fitted


def _learning_rate(pinned: PinnedModel, checkpoint: Checkpoint) -> float:
    if checkpoint.learning_rate is None:
        raise UsageError(
            f"The checkpoint at step {checkpoint.step} of {pinned.model_version.model_version_id} was registered "
            "without a learning rate, which this method needs.",
            "Register the model again with the learning rate of every checkpoint, or choose influence.",
        )
    return checkpoint.learning_rate


def training_segments(pinned: PinnedModel, total: float | None = None) -> dict[str, float]:
    """τ of the training that ends at each checkpoint, by its id: learning rate × steps since the one before.

    With a `total`, all of them together are so long.

    Raises:
        UsageError: a checkpoint without learning rate, or no later than the one before.
    """
    lengths, before = {}, 0
    for checkpoint in pinned.checkpoints:
        if checkpoint.step <= before:
            raise UsageError(
                f"The checkpoint at step {checkpoint.step} of {pinned.model_version.model_version_id} follows one at "
                f"step {before}, so that no training lies between them to unroll.",
                "Register the model again with the step of every checkpoint, or choose influence.",
            )
        lengths[checkpoint.checkpoint_id] = _learning_rate(pinned, checkpoint) * (checkpoint.step - before)
        before = checkpoint.step
    scale = total / sum(lengths.values()) if total else 1.0
    return {checkpoint_id: length * scale for checkpoint_id, length in lengths.items()}
