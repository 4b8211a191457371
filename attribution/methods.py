"""The attribution methods: what each does to a query, and to training rows, before the inner product (METHODS: M).

A method is a function from unweighted query features to preconditioned ones, registered under its name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import torch
from torch import Tensor

from gradtrail.attribution.curvature import BlockCurvature
from gradtrail.attribution.features import FeaturePlan, FeatureRows
from gradtrail.attribution.weights import weighted_queries
from gradtrail.errors import StoreError, UsageError
from gradtrail.nouns import Weighting

TrainScale = Literal["none", "inverse_norm"]


@dataclass(frozen=True)
class Preparation:
    """What a method may use: unweighted queries (queries, dimension) float64 and their squared norms per group."""

    vectors: Tensor
    squared_norms: Tensor
    plan: FeaturePlan
    curvature: BlockCurvature | None
    relative_damping: float
    absolute_damping: float


@dataclass(frozen=True)
class Method:
    """One way to attribute. `needs` names what must be computed beforehand, `train_scale` is a(z) of equation (1)."""

    name: str
    source: str
    description: str
    cost: str
    needs: tuple[str, ...]
    train_scale: TrainScale
    precondition: Callable[[Preparation], Tensor]


@dataclass(frozen=True)
class PreparedQueries:
    """Queries ready for plain inner products with stored rows: (queries, dimension), in the order of `query_ids`.

    `zero_norm_queries` counts those whose features are all zero; all their scores are zero.
    """

    vectors: Tensor
    train_scale: TrainScale
    query_ids: tuple[str, ...] = ()
    zero_norm_queries: int = 0


_METHODS: dict[str, Method] = {}
METHODS: Mapping[str, Method] = MappingProxyType(_METHODS)
"""Every method by name."""


def attribution_method(
    *, source: str, description: str, cost: str, needs: tuple[str, ...] = (), train_scale: TrainScale = "none"
) -> Callable[[Callable[[Preparation], Tensor]], Callable[[Preparation], Tensor]]:
    """Register the decorated function as a method under its own name."""

    def register(precondition: Callable[[Preparation], Tensor]) -> Callable[[Preparation], Tensor]:
        name = precondition.__name__
        _METHODS[name] = Method(name, source, description, cost, needs, train_scale, precondition)
        return precondition

    return register


@attribution_method(
    source="arXiv 2102.05262",
    description="Inner product of the two gradients: one small step on the example, seen at the output.",
    cost="one pass over the index",
)
def grad_dot(preparation: Preparation) -> Tensor:
    """M = I."""
    return preparation.vectors


@attribution_method(
    source="arXiv 2102.05262",
    description="Cosine of the two gradients: examples with large gradients do not dominate.",
    cost="one pass over the index",
    train_scale="inverse_norm",
)
def grad_cos(preparation: Preparation) -> Tensor:
    """M = I, both sides divided by their norm over all groups."""
    return preparation.vectors * inverse_norms(preparation.squared_norms).unsqueeze(1)


@attribution_method(
    source="arXiv 2405.13954",
    description="Influence function with block curvature: the effect of leaving the example out, to first order.",
    cost="a curvature per index, then one pass over the index",
    needs=("curvature",),
)
def influence(preparation: Preparation) -> Tensor:
    """M = (F_g + Λ_g)⁻¹ per group."""
    if preparation.curvature is None:
        raise UsageError("Method influence needs a curvature.", "Compute one with empirical_ or model_curvature.")
    return preparation.curvature.solve(
        preparation.vectors, preparation.plan, preparation.relative_damping, preparation.absolute_damping
    )


def find_method(name: str) -> Method:
    """The method called `name`; UsageError lists the known ones otherwise."""
    if name not in METHODS:
        raise UsageError(f"There is no attribution method {name!r}.", f"Choose one of {', '.join(METHODS)}.")
    return METHODS[name]


def prepare_queries(
    method: str,
    rows: FeatureRows,
    plan: FeaturePlan,
    weighting: Weighting | None = None,
    *,
    curvature: BlockCurvature | None = None,
    relative_damping: float = 0.1,
    absolute_damping: float = 0.0,
    stored_weighting: Weighting | None = None,
) -> PreparedQueries:
    """The query side of equation (1) for unweighted query features, against rows stored under `stored_weighting`.

    Raises:
        UsageError: for an unknown method, a weighting that does not fit, a missing curvature or a bad damping.
        StoreError: when the queries were measured with another plan.
    """
    chosen = find_method(method)
    if rows.vectors.shape[1] != plan.dimension:
        raise StoreError(
            f"Queries have {rows.vectors.shape[1]} columns, but the index has {plan.dimension}.",
            "Compute the query features with the plan of the index.",
        )
    preconditioned = chosen.precondition(
        Preparation(
            vectors=rows.vectors.double(),
            squared_norms=rows.squared_norms,
            plan=plan,
            curvature=curvature,
            relative_damping=relative_damping,
            absolute_damping=absolute_damping,
        )
    )
    return PreparedQueries(
        vectors=weighted_queries(preconditioned, plan, weighting or Weighting(), stored_weighting).to(plan.dtype),
        train_scale=chosen.train_scale,
        query_ids=tuple(rows.example_ids),
        zero_norm_queries=int((rows.squared_norms.sum(1) == 0).sum()),
    )


def inverse_norms(squared_norms: Tensor) -> Tensor:
    """1/‖φ‖ over all groups, (batch,) float64 from (batch, groups); 0 where the norm is 0, so that its scores are 0."""
    norms = squared_norms.sum(1).sqrt()
    return torch.where(norms > 0, 1 / norms, torch.zeros_like(norms))
