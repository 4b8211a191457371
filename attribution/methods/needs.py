"""What a method needs before it can score, and how it is fitted on one index (METHODS: M)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Generic, TypeVar

from torch import nn

from gradtrail.attribution.adapters.base import ModelAdapter, TrainingData
from gradtrail.attribution.curvature.blocks import BlockCurvature, DiagonalCurvature, default_curvature_kind
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
from gradtrail.attribution.features.plan import FeaturePlan
from gradtrail.attribution.features.rows import GradientBatch
from gradtrail.attribution.gradients.memory import FEW_EXAMPLES
from gradtrail.attribution.methods.spec import MethodSpec
from gradtrail.attribution.numerics.linear_solvers import SolverOptions
from gradtrail.errors import UsageError
from gradtrail.nouns import Example, Target

Fitted = TypeVar("Fitted")
Rows = Callable[[], Iterable[GradientBatch]]


@dataclass(frozen=True)
class FittingData:
    """What needs are fitted on: one index, and the checkpoint that measured it.

    `rows` streams the index under the plan's stored weighting; `model`, `queries`, `learning_rate` and `segment` are
    only called by needs that use them. `segment` gives τ of the part of training that ends at the checkpoint.
    """

    adapter: ModelAdapter
    plan: FeaturePlan
    rows: Rows
    examples: Callable[[], TrainingData]
    model: Callable[[], nn.Module]
    learning_rate: Callable[[], float]
    segment: Callable[[], float]
    queries: Callable[[], Sequence[Example]] = tuple
    target: Target | None = None
    device: str = "cpu"

    def curvature_vectors(self, kind: str) -> CurvaturePieces:
        """Gradients whose outer products are the curvature of this kind: as stored, or measured with the model."""
        if kind == "empirical":
            return observed_vectors(self.rows(), self.plan, self.plan.stored_weighting)
        return model_vectors(
            self.adapter,
            self.model(),
            self.examples(),
            self.plan,
            kind=kind,
            batch_size=FEW_EXAMPLES,
            device=self.device,
        )


@dataclass(frozen=True, eq=False)
class Need(Generic[Fitted]):
    """One thing that a method needs beforehand: what it is, how to get it, and how it is fitted.

    Attributes:
        name: of the argument of `prepare_queries`.
        description: what it is, for people.
        remedy: how to get it, where it is missing.
        fit: computes it; the spec is settled.
        kind: settles the kind of curvature that was asked for; None for a need without a curvature.
        joins_groups: whether the damping is relative to the curvature of all groups together, not of each.
        constants: what an audit records of it besides.
        recorded: under what name an audit records its values, one a checkpoint.
        form: type to read it back from a file called `file_name`, where it is worth keeping.
    """

    name: str
    description: str
    remedy: str
    fit: Callable[[FittingData, MethodSpec], Fitted]
    kind: Callable[[MethodSpec, ModelAdapter], str] | None = None
    joins_groups: bool = False
    constants: Mapping[str, Any] = field(default_factory=dict)
    recorded: str = ""
    form: type[BlockCurvature] | type[DiagonalCurvature] | type[Spectrum] | None = None
    file_name: str = ""


def _model_kind(spec: MethodSpec, adapter: ModelAdapter) -> str:
    kind = curvature_kind(spec.curvature or default_curvature_kind(adapter))
    require_curvature(adapter, kind)
    return kind


def _observed_kind(spec: MethodSpec, _: ModelAdapter) -> str:
    if spec.curvature not in {None, "empirical"}:
        raise UsageError(
            f"Method {spec.method} is defined on observed targets, not on curvature {spec.curvature}.",
            "Leave the curvature out.",
        )
    return "empirical"


def _margin_kind(spec: MethodSpec, adapter: ModelAdapter) -> str:
    kind = _observed_kind(spec, adapter)
    require_probabilities(adapter)
    return kind


def _solve(data: FittingData, spec: MethodSpec) -> Solutions:
    return inverse_curvature_products(
        "cg" if spec.method == "cg" else "lissa",
        data.adapter,
        data.model(),
        data.examples(),
        data.queries(),
        data.plan,
        kind=spec.curvature or full_curvature(""),
        damping=spec.damping,
        target=data.target,
        batch_size=FEW_EXAMPLES,
        device=data.device,
    )


CURVATURE: Need[BlockCurvature] = Need(
    "curvature",
    "a curvature",
    "Compute one with empirical_curvature or model_curvature.",
    lambda data, spec: BlockCurvature.fit(data.curvature_vectors(str(spec.curvature))),
    kind=_model_kind,
    form=BlockCurvature,
    file_name="{index_id}-{kind}",
)
SPECTRUM: Need[Spectrum] = Need(
    "spectrum",
    "the spectrum of a curvature",
    "Compute it with Spectrum.fit.",
    lambda data, spec: Spectrum.fit(data.curvature_vectors(str(spec.curvature))),
    kind=_model_kind,
    joins_groups=True,
    form=Spectrum,
    file_name="{index_id}-{kind}-spectrum",
)
KERNEL: Need[Spectrum] = Need(
    "kernel",
    "the kernel of margin gradients",
    "Compute it with Spectrum.fit(margin_vectors(…)).",
    lambda data, _: Spectrum.fit(margin_vectors(data.rows, data.plan, data.plan.stored_weighting)),
    kind=_margin_kind,
    joins_groups=True,
    form=Spectrum,
    file_name="{index_id}-margins",
)
DIAGONAL: Need[DiagonalCurvature] = Need(
    "diagonal",
    "the diagonal of a curvature in an index with eigen projection",
    "Compute it with DiagonalCurvature.fit.",
    lambda data, spec: DiagonalCurvature.fit(data.curvature_vectors(str(spec.curvature))),
    kind=_model_kind,
    form=DiagonalCurvature,
    file_name="{index_id}-{kind}-diagonal",
)
TRAINING_ROWS: Need[Rows] = Need(
    "training_rows",
    "the rows of the index",
    "Pass training_rows, a function that streams them.",
    lambda data, _: data.rows,
    kind=_observed_kind,
)
SOLUTIONS: Need[Solutions] = Need(
    "solutions",
    "outputs solved with the model (the extra `curvature`)",
    "Use inverse_curvature_products.",
    _solve,
    kind=lambda spec, _: full_curvature(spec.curvature or ""),
    joins_groups=True,
    constants={"tolerance": SolverOptions().tolerance, "most_products": SolverOptions().most_products},
)
LEARNING_RATE: Need[float] = Need(
    "learning_rate",
    "the learning rate at its checkpoint",
    "Register checkpoints with their learning rate, or choose grad_dot, which needs none.",
    lambda data, _: data.learning_rate(),
    recorded="learning_rates",
)
SEGMENT: Need[float] = Need(
    "segment",
    "the part of training that ends at its checkpoint",
    "Register checkpoints with step and learning rate, or choose influence, which needs neither.",
    lambda data, _: data.segment(),
    recorded="segments",
)
NEEDS: Mapping[str, Need[Any]] = MappingProxyType(
    {
        need.name: need
        for need in (CURVATURE, SPECTRUM, KERNEL, DIAGONAL, TRAINING_ROWS, SOLUTIONS, LEARNING_RATE, SEGMENT)
    }
)
"""Every need of the built-in methods by name."""
