"""Group weights fitted to what further training measured (METHODS: w, `further_training`).

With y[S, q] the measured and X[S, q, g] the predicted effects of each group, both centred over the left-out sets S,

    minimise over w ≥ 0   Σ_q ‖ y_q − c X_q w ‖² / (‖y_q‖² + c² ‖X_q 1‖²)  +  ridge · ‖w − 1‖²

where c is the median over q of ‖y_q‖ / ‖X_q 1‖, since predicted effects are known up to a factor only. The denominator
lets no query dominate. The ridge pulls towards uniform, and is the one whose weights rank best on selection queries.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from gradtrail.attribution.features.plan import FeaturePlan
from gradtrail.attribution.features.weights import group_weights
from gradtrail.attribution.numerics.correlation import centred, spearmans
from gradtrail.attribution.numerics.nonnegative import nonnegative_least_squares
from gradtrail.attribution.weighting.learning import FEWEST_QUERIES, effective_groups, uniform_because
from gradtrail.attribution.weighting.levels import GroupTies, Level, group_ties
from gradtrail.errors import DataError, UsageError
from gradtrail.nouns import Weighting

OBJECTIVE = "further_training"
RIDGES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""Relative to the mean diagonal of the normal equations; the smallest keeps the weights unique."""
_HALVINGS = 60

Effects = NDArray[np.float64]


@dataclass(frozen=True)
class EffectSplit:
    """Measured effects (sets, queries), what each group predicted (sets, queries, groups), and disjoint queries.

    Weights are fitted on the queries at `fit`, and their ridge is chosen on those at `select`.

    Raises:
        UsageError: for fewer than three queries in either part, or parts that share some.
        DataError: for effects of different shapes, fewer than two sets, or values that are not finite.
    """

    predicted: Effects
    measured: Effects
    fit: Sequence[int]
    select: Sequence[int]

    def __post_init__(self) -> None:
        if self.predicted.shape[:2] != self.measured.shape or len(self.measured) < 2:  # noqa: PLR2004 (to be centred)
            raise DataError(
                f"Predicted effects have shape {self.predicted.shape}, measured ones {self.measured.shape}.",
                "Predict the effects of the same sets, at least two, on the same queries.",
            )
        if not (np.isfinite(self.predicted).all() and np.isfinite(self.measured).all()):
            raise DataError("Predicted or measured effects are not finite.", "Raise the damping, or train less.")
        if min(len(self.fit), len(self.select)) < FEWEST_QUERIES or set(self.fit) & set(self.select):
            raise UsageError(
                f"{len(self.fit)} queries to fit weights on and {len(self.select)} to choose by, or some in both.",
                f"Give two disjoint parts of at least {FEWEST_QUERIES} queries each.",
            )

    def agreement(self, weights: Effects, queries: Sequence[int]) -> float:
        """Mean Spearman over some queries of weighted predictions with the measured effects."""
        chosen = list(queries)
        return float(spearmans(self.predicted[:, chosen] @ weights, self.measured[:, chosen]).mean())


def fit_effects(
    split: EffectSplit, plan: FeaturePlan, level: Level = "layer", least_effective_groups: float = 0.5
) -> Weighting:
    """The fitted weighting with its evidence; uniform where there is one group, or nothing to learn from.

    The evidence has the mean Spearman on the selection queries, uniform and learned; see `chosen_or_uniform`.

    Raises:
        UsageError: for a bound outside 0 to 1.
        DataError: when the predictions are of other groups than the plan's.
    """
    ties = group_ties(plan, level)
    groups = len(ties.places)
    if split.predicted.shape[2] != groups:
        raise DataError(
            f"Predicted effects of {split.predicted.shape[2]} groups, where the plan has {groups}.",
            "Take queries and rows from one index.",
        )
    if not 0 <= least_effective_groups <= 1:
        raise UsageError(f"A bound of {least_effective_groups} on effective groups.", "Choose it between 0 and 1.")
    if len(ties.names) == 1:
        return uniform_because(OBJECTIVE, "one group" if groups == 1 else f"one group at level {level}")
    problem = _scaled(split, ties)
    if problem is None:
        return uniform_because(OBJECTIVE, "no predicted and measured effects that differ between the left-out sets")
    least = max(1.0, least_effective_groups * groups)
    fitted = [(ridge, _bounded(_ridge_fit(problem, ties, ridge), ties, least)) for ridge in RIDGES]
    # The larger ridge wins a tie: it stays closer to uniform.
    ridge, weights = max(reversed(fitted), key=lambda each: split.agreement(each[1], split.select))
    return Weighting(
        objective=OBJECTIVE,
        group_weights=dict(zip([group.name for group in plan.groups], weights.tolist(), strict=True)),
        evidence={
            "level": level,
            "ridge": ridge,
            "sets": len(split.measured),
            "queries": len(split.fit),
            "selection_queries": len(split.select),
            "effective_groups": effective_groups(torch.from_numpy(weights / weights.sum())),
            "least_effective_groups": least,
            "spearman_uniform": split.agreement(np.ones(groups), split.select),
            "spearman_learned": split.agreement(weights, split.select),
        },
    )


def chosen_or_uniform(
    weighting: Weighting, plan: FeaturePlan, split: EffectSplit, *, least_gain: float = 0.0
) -> Weighting:
    """`weighting` where it ranks left-out sets better than uniform on the selection queries, else uniform.

    It serves a weighting of any objective. Either way the evidence holds both figures, as mean Spearman.
    """
    uniform = split.agreement(np.ones(len(plan.groups)), split.select)
    learned = split.agreement(group_weights(weighting, plan).numpy(), split.select)
    found = {"spearman_uniform": uniform, "spearman_learned": learned, "selection_queries": len(split.select)}
    if not weighting.group_weights:
        return replace(weighting, evidence={**weighting.evidence, **found})
    if learned > uniform + least_gain:
        return replace(weighting, evidence={**weighting.evidence, **found})
    cause = f"on the selection queries it ranks no better than uniform: {learned:.3f} against {uniform:.3f}"
    return Weighting(evidence={**uniform_because(weighting.objective, cause).evidence, **found})


def best_or_uniform(weightings: Sequence[Weighting], plan: FeaturePlan, split: EffectSplit) -> Weighting:
    """Of at least one weighting, the one that ranks left-out sets best on the selection queries, as above."""
    best = max(weightings, key=lambda each: split.agreement(group_weights(each, plan).numpy(), split.select))
    return chosen_or_uniform(best, plan, split)


def _scaled(split: EffectSplit, ties: GroupTies) -> tuple[Effects, Effects] | None:
    """The rows of the least squares problem, (rows, level groups) and (rows,); None where all is zero."""
    chosen = list(split.fit)
    measured = centred(split.measured[:, chosen], 0)
    summed = ties.summed(torch.from_numpy(split.predicted[:, chosen])).numpy()
    predicted = centred(summed, 0)
    sizes = np.linalg.norm(measured, axis=0)
    uniform = np.linalg.norm(predicted.sum(2), axis=0)
    useful = (sizes > 0) & (uniform > 0)
    if not useful.any():
        return None
    factor = float(np.median(sizes[useful] / uniform[useful]))
    scale = np.sqrt(sizes[useful] ** 2 + (factor * uniform[useful]) ** 2)
    matrix = factor * predicted[:, useful] / scale[None, :, None]
    target = measured[:, useful] / scale
    return matrix.reshape(-1, matrix.shape[2]), target.reshape(-1)


def _ridge_fit(problem: tuple[Effects, Effects], ties: GroupTies, ridge: float) -> Effects:
    """Weights of the stored groups, (groups,), not yet normalised."""
    matrix, target = problem
    sizes = ties.sizes.numpy()
    pull = np.sqrt(ridge * float((matrix**2).sum()) / len(ties.places) * sizes / sizes.mean())
    fitted = nonnegative_least_squares(np.vstack([matrix, np.diag(pull)]), np.concatenate([target, pull]))
    expanded: Effects = ties.expanded(torch.from_numpy(fitted)).numpy()
    return expanded


def _bounded(weights: Effects, ties: GroupTies, least: float) -> Effects:
    """Mean 1, mixed with uniform as little as it takes until at least `least` groups are effective."""
    groups = len(ties.places)
    if weights.sum() <= 0:
        return np.ones(groups)
    normal: Effects = weights / weights.mean()

    def mixed(part: float) -> Effects:
        return (1 - part) * normal + part

    def effective(part: float) -> float:
        return effective_groups(torch.from_numpy(mixed(part) / groups))

    if effective(0.0) >= least:
        return normal
    low, high = 0.0, 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if effective(middle) >= least else (middle, high)
    return mixed(high)
