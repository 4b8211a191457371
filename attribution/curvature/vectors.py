"""The vectors whose mean outer product is a curvature, streamed: F = mean over examples of Σ φ φᵀ.

Three kinds (METHODS: curvature kinds): `empirical` from observed targets, `fisher` from targets sampled from the model,
`ggn` exact through a factor of the loss's Hessian in the outputs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from gradtrail.attribution.adapters.base import Batch, ModelAdapter, TrainingData, iterate_examples
from gradtrail.attribution.features.plan import FeaturePlan
from gradtrail.attribution.features.rows import GradientBatch
from gradtrail.attribution.features.weights import unweighted_vectors
from gradtrail.attribution.gradients.forward_passes import hooked_forward
from gradtrail.attribution.gradients.hooks import HookedForward
from gradtrail.attribution.gradients.tracked_model import TrackedModel, track_model
from gradtrail.errors import DataError, ModelError, UsageError
from gradtrail.nouns import Example, Weighting

CurvatureKind = Literal["empirical", "fisher", "ggn"]
CURVATURE_KINDS: tuple[CurvatureKind, ...] = get_args(CurvatureKind)
_NEEDED_METHODS: dict[CurvatureKind, str] = {"fisher": "sample_targets", "ggn": "curvature_factors"}


@dataclass(frozen=True)
class CurvaturePieces:
    """A stream of (examples that this piece completes, unweighted vectors), of one kind."""

    kind: CurvatureKind
    plan: FeaturePlan
    pieces: Iterable[tuple[int, Tensor]]


def curvature_kind(name: str) -> CurvatureKind:
    """The kind called `name`; UsageError lists the known ones otherwise."""
    if name not in CURVATURE_KINDS:
        raise UsageError(f"There is no curvature kind {name!r}.", f"Choose one of {', '.join(CURVATURE_KINDS)}.")
    return name


def default_curvature_kind(adapter: ModelAdapter) -> Literal["fisher", "empirical"]:
    """`fisher` where the adapter can sample targets of its own losses, else `empirical`."""
    return "fisher" if _written_for_its_losses(adapter, "sample_targets") else "empirical"


def require_curvature(adapter: ModelAdapter, kind: CurvatureKind) -> None:
    """Refuse a kind for which the adapter lacks what the kind needs, or has it for other losses than its own.

    Raises:
        ModelError: naming the method of the adapter.
    """
    method = _NEEDED_METHODS.get(kind)
    if method is None or _written_for_its_losses(adapter, method):
        return
    name, owner = type(adapter).__name__, _definer(adapter, method)
    if owner is ModelAdapter:
        lacks = "sample targets" if method == "sample_targets" else "have curvature_factors"
        raise ModelError(
            f"{name} does not {lacks}, which curvature `{kind}` needs.",
            f"Write {method} in the adapter, or choose curvature `empirical`.",
        )
    raise ModelError(
        f"{name} has losses of its own, but curvature `{kind}` would use the {method} of {owner.__name__}.",
        f"Write {method} for these losses in the adapter, or choose curvature `empirical`.",
    )


def _written_for_its_losses(adapter: ModelAdapter, method: str) -> bool:
    """Whether the class that defines `method` is the one that defines the losses, or a subclass of it."""
    classes = type(adapter).__mro__
    return classes.index(_definer(adapter, method)) <= classes.index(_definer(adapter, "losses"))


def _definer(adapter: ModelAdapter, method: str) -> type:
    return next(each for each in type(adapter).__mro__ if method in vars(each))


def observed_vectors(
    rows: Iterable[GradientBatch], plan: FeaturePlan, stored_weighting: Weighting | None = None
) -> CurvaturePieces:
    """Kind `empirical`: feature rows as computed, or as stored under `stored_weighting`."""
    pieces = ((len(part.vectors), unweighted_vectors(part.vectors, plan, stored_weighting)) for part in rows)
    return CurvaturePieces("empirical", plan, pieces)


def model_vectors(
    adapter: ModelAdapter,
    model: nn.Module,
    examples: Iterable[Example] | TrainingData,
    plan: FeaturePlan,
    *,
    kind: str,
    seed: int = 0,
    batch_size: int = 64,
    device: str | torch.device = "cpu",
) -> CurvaturePieces:
    """Kind `fisher` (one sampled target per example, drawn in order from `seed`) or `ggn` (exact).

    Raises:
        UsageError: for another kind, at once.
        ModelError: when the adapter does not support the kind.
        DataError: on the way, when a gradient is not finite, naming the example.
    """
    if kind not in {"fisher", "ggn"}:
        raise UsageError(
            f"Curvature {kind!r} cannot be computed from the model.", "Choose fisher or ggn, or empirical_curvature."
        )
    require_curvature(adapter, curvature_kind(kind))
    tracked = track_model(adapter, model, plan, device)
    pieces = _model_pieces(tracked, iterate_examples(examples), kind, seed, batch_size)
    return CurvaturePieces(curvature_kind(kind), plan, pieces)


def _model_pieces(
    tracked: TrackedModel, remaining: Iterator[Example], kind: str, seed: int, batch_size: int
) -> Iterator[tuple[int, Tensor]]:
    adapter = tracked.adapter
    generator = torch.Generator().manual_seed(seed)
    while batch := list(islice(remaining, batch_size)):
        with hooked_forward(tracked, batch) as forward:
            refuse_non_finite("model's output", forward.outputs.detach(), batch)
            if kind == "fisher":
                sampled = adapter.sample_targets(forward.outputs, forward.batch, generator)
                pieces = iter([forward.vectors(adapter.losses(forward.outputs, sampled))])
            else:
                pieces = _factor_vectors(adapter, forward)
            for position, vectors in enumerate(pieces):
                refuse_non_finite("curvature's gradient", vectors, batch)
                yield (len(batch) if position == 0 else 0), vectors.cpu()


def output_factors(adapter: ModelAdapter, outputs: Tensor, batch: Batch) -> Tensor:
    """The adapter's factors of the loss's Hessian in the outputs, or the error that it has none."""
    factors = adapter.curvature_factors(outputs, batch)
    if factors is None:
        raise ModelError(
            f"{type(adapter).__name__} has no curvature_factors, which curvature `ggn` needs.",
            "Write curvature_factors in the adapter, or choose fisher or empirical.",
        )
    return factors.detach()


def _factor_vectors(adapter: ModelAdapter, forward: HookedForward) -> Iterator[Tensor]:
    """J_nᵀ f_k for each factor k: one backward pass each."""
    factors = output_factors(adapter, forward.outputs, forward.batch)
    for position, factor in enumerate(factors):
        products = (factor * forward.outputs).flatten(1).sum(1)
        yield forward.vectors(products, keep_graph=position + 1 < len(factors))


def refuse_non_finite(what: str, values: Tensor, examples: Sequence[Example]) -> None:
    """DataError naming the examples whose row of `values` (batch, …) is not finite."""
    sound = torch.isfinite(values).reshape(len(examples), -1).all(1).tolist()
    named = [example.example_id for example, finite in zip(examples, sound, strict=True) if not finite]
    if named:
        raise DataError(
            f"The {what} is not finite for {', '.join(named[:10])}.",
            "Leave out the examples that the index quarantined.",
        )
