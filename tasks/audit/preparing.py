"""What a method needs before it can score: parameters that pin it, and fitted curvature, computed once and kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from safetensors.torch import load_file

from gradtrail.attribution.curvature.blocks import BlockCurvature, DiagonalCurvature, default_curvature_kind
from gradtrail.attribution.curvature.condition_numbers import conditioning, conditioning_warnings
from gradtrail.attribution.curvature.damping import Damping
from gradtrail.attribution.curvature.inverse_products import Solutions, full_curvature, inverse_curvature_products
from gradtrail.attribution.curvature.spectrum import Spectrum, margin_vectors
from gradtrail.attribution.curvature.vectors import (
    CurvaturePieces,
    curvature_kind,
    model_vectors,
    observed_vectors,
    require_curvature,
)
from gradtrail.attribution.features.margins import require_probabilities
from gradtrail.attribution.features.rows import FeatureRows
from gradtrail.attribution.gradients.memory import FEW_EXAMPLES
from gradtrail.attribution.methods.registry import find_method
from gradtrail.attribution.methods.rules import prepare_queries
from gradtrail.attribution.methods.unrolling import carried_rows
from gradtrail.attribution.numerics.linear_solvers import SolverOptions
from gradtrail.attribution.scoring.batches import ScoringPass
from gradtrail.attribution.scoring.joint import Member, scoring_pass
from gradtrail.errors import UsageError
from gradtrail.nouns import Checkpoint, Example, Target, Weighting
from gradtrail.storage.models.checkpoints import write_safetensors
from gradtrail.tasks.core.models import PinnedModel
from gradtrail.tasks.core.workspace import Workspace
from gradtrail.tasks.index.opened import OpenIndex

Fitted = TypeVar("Fitted", BlockCurvature, DiagonalCurvature, Spectrum)
_MODEL_KIND_NEEDS = {"curvature", "spectrum", "diagonal"}
_OBSERVED_ONLY_NEEDS = {"kernel", "training_rows"}
_LARGE_RESIDUAL = 1e-2


@dataclass(frozen=True)
class MethodOptions:
    """What a person chose about the method; `horizon` 0 stands for none, and the damping is the horizon then."""

    method: str
    curvature: str
    relative_damping: float
    absolute_damping: float
    horizon: float
    device: str
    target: Target


@dataclass(frozen=True)
class PreparedAudit:
    """Ready to score: the pass over its members (one an index), the outputs as the serving checkpoint measured them,
    and what the report must say."""

    scoring: ScoringPass
    members: tuple[Member, ...]
    queries: FeatureRows
    curvature_examples: int
    warnings: tuple[str, ...]
    missing: set[str]


def method_parameters(pinned: PinnedModel, options: MethodOptions, checkpoints: Sequence[Checkpoint]) -> dict[str, Any]:
    """What pins the method of an audit, beside what every audit has.

    Raises:
        UsageError: for options that the method or the model cannot serve.
    """
    needs = set(find_method(options.method).needs)
    parameters: dict[str, Any] = {}
    if "solutions" in needs:
        solver = SolverOptions()
        parameters |= {"tolerance": solver.tolerance, "most_products": solver.most_products}
        parameters["curvature"] = full_curvature(options.curvature)
    elif needs & _MODEL_KIND_NEEDS:
        kind = options.curvature or default_curvature_kind(pinned.adapter)
        parameters["curvature"] = curvature_kind(kind)
        require_curvature(pinned.adapter, parameters["curvature"])
    elif needs & _OBSERVED_ONLY_NEEDS:
        if options.curvature not in {"", "empirical"}:
            raise UsageError(
                f"Method {options.method} is defined on observed targets, not on curvature {options.curvature}.",
                "Leave the curvature out.",
            )
        parameters["curvature"] = "empirical"
    if "kernel" in needs:
        require_probabilities(pinned.adapter)
    if options.horizon and options.method != "horizon" and "segment" not in needs:
        raise UsageError(f"Method {options.method} has no horizon.", "Choose method horizon, or leave it out.")
    if options.horizon:
        parameters["horizon"] = options.horizon
    if "segment" in needs:
        segments = training_segments(pinned, options.horizon)
        parameters["segments"] = [segments[checkpoint.checkpoint_id] for checkpoint in checkpoints]
    elif "curvature" in parameters and not options.horizon:
        damping = Damping(options.relative_damping, options.absolute_damping)
        parameters |= {"relative_damping": damping.relative, "absolute_damping": damping.absolute}
    if "learning_rate" in needs:
        parameters["learning_rates"] = [_learning_rate(pinned, checkpoint) for checkpoint in checkpoints]
    return parameters


def prepare_audit(
    workspace: Workspace,
    pinned: PinnedModel,
    opened: Sequence[OpenIndex],
    output_queries: Sequence[FeatureRows],
    options: MethodOptions,
    parameters: Mapping[str, Any],
    weighting: Weighting,
    examples_of: Callable[[Sequence[str]], list[Example]],
) -> PreparedAudit:
    """Fit or read what the method needs for each index, and prepare the outputs for it.

    `opened` and `output_queries` go together, the serving checkpoint last; `examples_of` gives outputs as examples. A
    method that carries its queries takes those of the serving checkpoint alone.
    """
    method = find_method(options.method)
    members: list[Member] = []
    warnings: list[str] = []
    examples = 0
    damping = Damping(options.relative_damping, options.absolute_damping)
    carried = output_queries[-1]
    for each, own in reversed(list(zip(opened, output_queries, strict=True))):
        rows = carried if method.carry else own
        needs = method_needs(workspace, pinned, each, options, parameters)
        if "solutions" in method.needs:
            solutions = _solve(pinned, each, examples_of(rows.example_ids), options, str(parameters["curvature"]))
            needs["solutions"], examples = solutions.vectors, each.index.coverage.indexed_examples
            if solutions.residual > _LARGE_RESIDUAL:
                warnings.append(
                    f"Method {options.method} left a relative residual of {solutions.residual:.2g}: its scores are "
                    "only about so exact. A larger damping makes it smaller."
                )
        for fitted in needs.values():
            if isinstance(fitted, BlockCurvature | DiagonalCurvature | Spectrum):
                examples = fitted.example_count
                if "relative_damping" in parameters:
                    warnings += conditioning_warnings(conditioning(fitted, each.plan, damping), examples)
        if "kernel" in needs and examples < each.index.coverage.indexed_examples:
            warnings.append(
                f"{each.index.coverage.indexed_examples - examples:,} examples are fitted so well that 1 − p is lost "
                "in rounding; the kernel leaves them out."
            )
        prepared = prepare_queries(
            options.method,
            rows,
            each.plan,
            weighting,
            stored_weighting=each.plan.stored_weighting,
            horizon=options.horizon or None,
            relative_damping=options.relative_damping,
            absolute_damping=options.absolute_damping,
            **needs,
        )
        carried = carried_rows(rows, prepared)
        members.insert(0, Member(prepared, partial(each.rows, len(rows.example_ids))))
    missing: set[str] = set()
    scoring = scoring_pass(members, method.combination, missing.add)
    return PreparedAudit(scoring, tuple(members), output_queries[-1], examples, tuple(dict.fromkeys(warnings)), missing)


def method_needs(
    workspace: Workspace, pinned: PinnedModel, opened: OpenIndex, options: MethodOptions, parameters: Mapping[str, Any]
) -> dict[str, Any]:
    """The arguments of `prepare_queries` that the method's `needs` name, but for solutions, which depend on outputs."""
    kind = str(parameters.get("curvature", ""))

    def pieces() -> CurvaturePieces:
        if kind == "empirical":
            return observed_vectors(opened.rows(), opened.plan, opened.plan.stored_weighting)
        return model_vectors(
            pinned.adapter,
            pinned.load(opened.checkpoint).to(options.device),
            opened.examples(pinned),
            opened.plan,
            kind=kind,
            batch_size=FEW_EXAMPLES,
            device=options.device,
        )

    found: dict[str, Any] = {}
    for need in find_method(options.method).needs:
        if need == "curvature":
            found[need] = _fitted(workspace, f"{opened.index.index_id}-{kind}", kind, BlockCurvature, pieces)
        elif need == "spectrum":
            found[need] = _fitted(workspace, f"{opened.index.index_id}-{kind}-spectrum", kind, Spectrum, pieces)
        elif need == "diagonal":
            name = f"{opened.index.index_id}-{kind}-diagonal"
            found[need] = _fitted(workspace, name, kind, DiagonalCurvature, pieces)
        elif need == "kernel":
            name = f"{opened.index.index_id}-margins"
            margins = partial(margin_vectors, opened.rows, opened.plan, opened.plan.stored_weighting)
            found[need] = _fitted(workspace, name, "empirical", Spectrum, margins)
        elif need == "training_rows":
            found[need] = opened.rows
        elif need == "learning_rate":
            found[need] = _learning_rate(pinned, opened.checkpoint)
        elif need == "segment":
            found[need] = training_segments(pinned, options.horizon)[opened.checkpoint.checkpoint_id]
    return found


def _solve(
    pinned: PinnedModel, opened: OpenIndex, outputs: Sequence[Example], options: MethodOptions, kind: str
) -> Solutions:
    return inverse_curvature_products(
        "cg" if options.method == "cg" else "lissa",
        pinned.adapter,
        pinned.load(opened.checkpoint).to(options.device),
        opened.examples(pinned),
        outputs,
        opened.plan,
        kind=kind,
        damping=Damping(options.relative_damping, options.absolute_damping),
        target=options.target,
        batch_size=FEW_EXAMPLES,
        device=options.device,
    )


def _fitted(
    workspace: Workspace, name: str, kind: str, form: type[Fitted], pieces: Callable[[], CurvaturePieces]
) -> Fitted:
    """Fitted once, then read from its file."""
    path = workspace.curvatures / f"{name}.safetensors"
    if path.is_file():
        return form.from_tensors(load_file(path), kind)
    fitted = form.fit(pieces())
    path.parent.mkdir(parents=True, exist_ok=True)
    write_safetensors(fitted.to_tensors(), path)
    return fitted


def _learning_rate(pinned: PinnedModel, checkpoint: Checkpoint) -> float:
    if checkpoint.learning_rate is None:
        raise UsageError(
            f"The checkpoint at step {checkpoint.step} of {pinned.model_version.model_version_id} was registered "
            "without a learning rate, which this method needs.",
            "Register the model again with the learning rate of every checkpoint, or choose influence.",
        )
    return checkpoint.learning_rate


def training_segments(pinned: PinnedModel, total: float = 0.0) -> dict[str, float]:
    """τ of the training that ends at each checkpoint, by its id: learning rate × steps since the one before.

    With a positive `total`, all of them together are so long.

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
