"""What an attribution method is, and the registry that finds one by name (METHODS: M).

A method is a function from unweighted query features to preconditioned ones, registered under its name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, TypeVar

import torch
from torch import Tensor

from gradtrail.attribution.curvature.blocks import BlockCurvature, DiagonalCurvature
from gradtrail.attribution.curvature.damping import Damping
from gradtrail.attribution.curvature.spectrum import Spectrum
from gradtrail.attribution.features.plan import FeaturePlan
from gradtrail.attribution.features.rows import FeatureRows
from gradtrail.attribution.registry import Registry
from gradtrail.errors import UsageError
from gradtrail.nouns import Weighting

TrainScale = Literal["none", "inverse_norm"]
Need = Literal["curvature", "spectrum", "kernel", "diagonal", "training_rows", "solutions", "learning_rate", "segment"]
Combination = Literal["one", "sum", "mean_margin"]
Value = TypeVar("Value")

NEEDS: Mapping[Need, tuple[str, str]] = MappingProxyType(
    {
        "curvature": ("a curvature", "Compute one with empirical_curvature or model_curvature."),
        "spectrum": ("the spectrum of a curvature", "Compute it with Spectrum.fit."),
        "kernel": ("the kernel of margin gradients", "Compute it with Spectrum.fit(margin_vectors(…))."),
        "diagonal": (
            "the diagonal of a curvature in an index with eigen projection",
            "Compute it with DiagonalCurvature.fit.",
        ),
        "training_rows": ("the rows of the index", "Pass training_rows, a function that streams them."),
        "solutions": ("outputs solved with the model (the extra `curvature`)", "Use inverse_curvature_products."),
        "learning_rate": (
            "the learning rate at its checkpoint",
            "Register checkpoints with their learning rate, or choose grad_dot, which needs none.",
        ),
        "segment": (
            "the part of training that ends at its checkpoint",
            "Register checkpoints with step and learning rate, or choose influence, which needs neither.",
        ),
    }
)
"""What a method may need beforehand, in words, and how to get it; each is an argument of `prepare_queries`."""


@dataclass(frozen=True)
class Preparation:
    """What a method may use; all tensors are float64.

    `vectors` (queries, dimension) are unweighted, `squared_norms` (queries, groups) theirs, `losses` (queries,).
    `solutions` are like `vectors`, after the inverse curvature of all parameters (cg, lissa).
    """

    vectors: Tensor
    squared_norms: Tensor
    losses: Tensor
    plan: FeaturePlan
    damping: Damping
    horizon: float | None = None
    curvature: BlockCurvature | None = None
    spectrum: Spectrum | None = None
    kernel: Spectrum | None = None
    diagonal: DiagonalCurvature | None = None
    training_rows: Callable[[], Iterable[FeatureRows]] | None = None
    stored_weighting: Weighting | None = None
    solutions: Tensor | None = None
    learning_rate: float | None = None
    segment: float | None = None


@dataclass(frozen=True)
class Method:
    """One way to attribute.

    `needs` names what must be computed beforehand, `train_scale` is a(z) of equation (1), `combination` how several
    indexes (one a checkpoint) make one score: `one` means that they do not. `carry` gives what is left of queries for
    the checkpoint before; without it, each checkpoint takes its own.
    """

    name: str
    source: str
    description: str
    cost: str
    needs: tuple[Need, ...]
    train_scale: TrainScale
    combination: Combination
    precondition: Callable[[Preparation], Tensor]
    carry: Callable[[Preparation], Tensor] | None = None

    @property
    def takes_every_checkpoint(self) -> bool:
        """Whether the method is of no use on one checkpoint."""
        return bool({"learning_rate", "segment"} & set(self.needs))

    @property
    def needs_in_words(self) -> str:
        """What must be computed beforehand, for people."""
        return "; ".join(NEEDS[need][0] for need in self.needs) or "nothing more"


METHODS: Registry[str, Method] = Registry("gradtrail.attribution.methods.rules")
"""Every method by name."""


def attribution_method(
    *,
    source: str,
    description: str,
    cost: str,
    needs: tuple[Need, ...] = (),
    train_scale: TrainScale = "none",
    combination: Combination = "one",
    carry: Callable[[Preparation], Tensor] | None = None,
) -> Callable[[Callable[[Preparation], Tensor]], Callable[[Preparation], Tensor]]:
    """Register the decorated function as a method under its own name."""

    def register(precondition: Callable[[Preparation], Tensor]) -> Callable[[Preparation], Tensor]:
        name = precondition.__name__
        METHODS.add(name, Method(name, source, description, cost, needs, train_scale, combination, precondition, carry))
        return precondition

    return register


def find_method(name: str) -> Method:
    """The method called `name`; UsageError lists the known ones otherwise."""
    if name not in METHODS:
        raise UsageError(f"There is no attribution method {name!r}.", f"Choose one of {', '.join(METHODS)}.")
    return METHODS[name]


def given(value: Value | None, method: str, need: Need) -> Value:
    """`value`, or the UsageError that says what `method` is missing."""
    if value is None:
        what, remedy = NEEDS[need]
        raise UsageError(f"Method {method} needs {what}.", remedy)
    return value


def inverse_norms(squared_norms: Tensor) -> Tensor:
    """1/‖φ‖ over all groups, (batch,) float64 from (batch, groups); 0 where the norm is 0, so that its scores are 0."""
    norms = squared_norms.sum(1).sqrt()
    return torch.where(norms > 0, 1 / norms, torch.zeros_like(norms))
