"""Group weights on both sides of a score, in one place (METHODS: stored per row).

A stored row is √v_g · φ_g(z) under the index's weighting v; a query under weighting w is w_g / √v_g · [M φ(q)]_g, so
that their inner product is Σ_g w_g ⟨[M φ(q)]_g, φ_g(z)⟩ whatever v was.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gradtrail.attribution.features.plan import FeaturePlan
from gradtrail.errors import UsageError
from gradtrail.nouns import Weighting

STORED_FLOOR = 0.01
"""Least stored weight after normalising to mean 1: every group must remain readable under any later weighting."""


def group_weights(weighting: Weighting, plan: FeaturePlan) -> Tensor:
    """Weights in the order of the plan's groups, normalised to mean 1: (groups,) float64. Zeros are allowed.

    Raises:
        UsageError: for groups the plan does not have, groups without a weight, and weights that are negative, not
            finite or all zero.
    """
    if not weighting.group_weights:
        return torch.ones(len(plan.groups), dtype=torch.float64)
    names = [group.name for group in plan.groups]
    unknown = sorted(set(weighting.group_weights) - set(names))
    missing = sorted(set(names) - set(weighting.group_weights))
    if unknown or missing:
        raise UsageError(
            f"The weighting does not fit the index: unknown groups {unknown}, groups without a weight {missing}.",
            f"Give one weight for each of {', '.join(names)}, or none for the uniform weighting.",
        )
    weights = torch.tensor([weighting.group_weights[name] for name in names], dtype=torch.float64)
    if not torch.isfinite(weights).all() or weights.min() < 0 or weights.sum() == 0:
        raise UsageError(
            f"The weighting {dict(weighting.group_weights)} has weights that are negative, not finite or all zero.",
            "Give weights of at least 0, one of them positive.",
        )
    return weights / weights.mean()


def stored_vectors(vectors: Tensor, plan: FeaturePlan, weighting: Weighting | None = None) -> Tensor:
    """Unweighted vectors (batch, dimension) as an index under `weighting` stores them."""
    return vectors * _columns(_stored(weighting, plan).sqrt(), plan).to(vectors)


def unweighted_vectors(vectors: Tensor, plan: FeaturePlan, weighting: Weighting | None = None) -> Tensor:
    """The inverse of `stored_vectors`, in float32 or better."""
    working = vectors.to(torch.promote_types(torch.float32, vectors.dtype))
    return working / _columns(_stored(weighting, plan).sqrt(), plan).to(working)


def weighted_queries(vectors: Tensor, plan: FeaturePlan, weighting: Weighting, stored: Weighting | None) -> Tensor:
    """Preconditioned queries (queries, dimension) under `weighting`, against rows stored under `stored`."""
    return vectors * _columns(group_weights(weighting, plan) / _stored(stored, plan).sqrt(), plan).to(vectors)


def _stored(weighting: Weighting | None, plan: FeaturePlan) -> Tensor:
    return group_weights(weighting or Weighting(), plan).clamp_min(STORED_FLOOR)


def _columns(per_group: Tensor, plan: FeaturePlan) -> Tensor:
    return per_group.repeat_interleave(torch.tensor([group.dimension for group in plan.groups]))
