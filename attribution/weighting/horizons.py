"""Damping (or τ) and group weights fitted together, for each amount of further training (METHODS: the horizon).

One decomposition (`gradtrail.attribution.curvature.spectrum`) and the sums of the left-out sets (`removed_sums`) serve
every point of the grid, so that a sweep costs little more than one point.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gradtrail.attribution.features.plan import FeaturePlan
from gradtrail.attribution.features.weights import group_weights
from gradtrail.attribution.weighting.effects import EffectSplit, chosen_or_uniform
from gradtrail.attribution.weighting.fitting import FittingSettings, fit_weighting
from gradtrail.errors import UsageError
from gradtrail.nouns import Weighting


@dataclass(frozen=True)
class FittedHorizon:
    """The best point of the grid for one amount of further training, with its weighting.

    `uniform` and `weighted` are mean Spearmans on the selection queries, at this point; `by_point` has the better of
    both for every point. They were chosen by, so report the figure of other queries.
    """

    amount: int
    point: float
    weighting: Weighting
    uniform: float
    weighted: float
    by_point: Mapping[float, float]


def fit_horizon(
    predict: Callable[[float], NDArray[np.float64]],
    grid: Sequence[float],
    measured: Mapping[int, NDArray[np.float64]],
    plan: FeaturePlan,
    fit: Sequence[int],
    select: Sequence[int],
    settings: FittingSettings | None = None,
) -> dict[int, FittedHorizon]:
    """For each amount of further training, the point whose predictions rank left-out sets best, and its weighting.

    At every point of the grid (dampings, or τ) weights are fitted on the queries at `fit`, and kept where they do
    better than uniform on those at `select`; the best point is the best of these. `predict` is called once a point, and
    gives the effects that each group predicts (sets, queries, groups); `measured` has effects (sets, queries) by
    amount. Of equal points the first wins. At most one prediction is held at a time.

    Raises:
        UsageError: for an empty grid or no amount, and as `fit_weighting`.
        DataError: as `fit_weighting`.
    """
    if not grid or not measured:
        raise UsageError(
            f"A grid of {len(grid)} points for {len(measured)} amounts of further training.", "Give at least one each."
        )
    best: dict[int, FittedHorizon] = {}
    curves: dict[int, dict[float, float]] = {amount: {} for amount in measured}
    for point in grid:
        predicted = predict(point)
        for amount, effects in measured.items():
            found = _at(point, amount, EffectSplit(predicted, effects, fit, select), plan, settings, curves[amount])
            if amount not in best or found.weighted > best[amount].weighted:
                best[amount] = found
    return best


def _at(
    point: float,
    amount: int,
    split: EffectSplit,
    plan: FeaturePlan,
    settings: FittingSettings | None,
    curve: dict[float, float],
) -> FittedHorizon:
    weighting = chosen_or_uniform(fit_weighting("further_training", plan, settings, effects=split), plan, split)
    weighted = split.agreement(group_weights(weighting, plan).numpy(), split.select)
    curve[point] = weighted
    uniform = split.agreement(np.ones(len(plan.groups)), split.select)
    return FittedHorizon(amount, point, weighting, uniform, weighted, curve)
