"""Fidelity: how well predicted effects agree with those that further training measured (arXiv 2412.03906).

`fidelity_subset` (random halves left out) and `fidelity_loo` (single examples) are two figures, never mixed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gradtrail.attribution.fidelity.effects import Effects
from gradtrail.attribution.fidelity.noise_ceilings import NoiseCeiling
from gradtrail.attribution.numerics.correlation import cosines, spearmans
from gradtrail.attribution.scoring.batches import ScoringPass
from gradtrail.errors import DataError, UsageError
from gradtrail.nouns import lies_above

FEWEST_QUERIES = 3


@dataclass(frozen=True)
class FidelityFigure:
    """Agreement between predicted and measured effects over the left-out sets, as a mean over queries.

    Standard errors are over queries, for these sets: the choice of sets, which all queries share, adds to them.
    Ceilings are what the noise of the measurement leaves within reach.
    """

    metric: str
    steps: int
    spearman: float
    spearman_error: float
    spearman_ceiling: float
    cosine: float
    cosine_error: float
    cosine_ceiling: float
    queries: int
    noise_ceiling: NoiseCeiling

    @property
    def could_be_measured(self) -> bool:
        """Whether the noise ceiling stands off zero, and below the figure by no more than both errors explain."""
        ceiling = self.noise_ceiling
        return ceiling.stands and not lies_above(
            self.spearman, self.spearman_error, ceiling.spearman, ceiling.spearman_error
        )


def predicted_effects(scoring: ScoringPass, removed: Sequence[frozenset[str]]) -> NDArray[np.float64]:
    """Σ over z in S of score(q, z) for each left-out set S, in one pass over the index: (sets, queries).

    Raises:
        DataError: naming an example that was left out but has no score.
    """
    totals = np.zeros((len(removed), scoring.query_count))
    seen: set[str] = set()
    for batch, scores in scoring.batches():
        members = np.array([[example_id in without for example_id in batch.example_ids] for without in removed])
        totals += members.astype(np.float64) @ scores.T
        seen.update(batch.example_ids)
    missing = sorted({example_id for without in removed for example_id in without} - seen)
    if missing:
        raise DataError(
            f"{len(missing)} left-out examples have no score, for example {missing[0]}.",
            "Leave out examples that the index holds.",
        )
    return totals


def split_queries(count: int, parts: int, seed: int = 0) -> list[list[int]]:
    """Disjoint positions of queries, drawn at random: what is chosen on one part is reported on another.

    Raises:
        UsageError: when a part would have fewer than three queries.
    """
    if count < parts * FEWEST_QUERIES:
        raise UsageError(
            f"{count} queries cannot be split into {parts} parts.", f"Give at least {parts * FEWEST_QUERIES} queries."
        )
    order = np.random.default_rng(seed).permutation(count)
    return [sorted(part.tolist()) for part in np.array_split(order, parts)]


def fidelity(
    predicted: NDArray[np.float64], effects: Effects, steps: int, queries: Sequence[int] | None = None
) -> FidelityFigure:
    """Fidelity of `predicted` (sets, queries) after `steps` of further training, over the queries at some positions.

    A query whose predicted or measured effects are all equal counts as 0.

    Raises:
        UsageError: for fewer than three queries, or an amount of training that was not measured.
        DataError: when the shapes differ, or a prediction is not finite.
    """
    measured = effects.mean[effects.amount(steps)]
    refuse_unequal(predicted, measured)
    chosen = chosen_queries(queries, measured.shape[1])
    ranks = spearmans(predicted[:, chosen], measured[:, chosen])
    angles = cosines(predicted[:, chosen], measured[:, chosen])
    ceiling = effects.ceiling(steps, chosen)
    return FidelityFigure(
        metric=f"fidelity_{effects.kind}",
        steps=steps,
        spearman=float(ranks.mean()),
        spearman_error=standard_error(ranks),
        spearman_ceiling=ceiling.spearman,
        cosine=float(angles.mean()),
        cosine_error=standard_error(angles),
        cosine_ceiling=ceiling.cosine,
        queries=len(chosen),
        noise_ceiling=ceiling,
    )


def chosen_queries(queries: Sequence[int] | None, count: int) -> list[int]:
    """Positions of the queries that a figure is about: all `count`, or those given.

    Raises:
        UsageError: for fewer than three.
    """
    chosen = list(range(count)) if queries is None else list(queries)
    if len(chosen) < FEWEST_QUERIES:
        raise UsageError(
            f"{len(chosen)} queries are too few to say how far they agree.", f"Give at least {FEWEST_QUERIES}."
        )
    return chosen


def refuse_unequal(predicted: NDArray[np.float64], measured: NDArray[np.float64]) -> None:
    """Refuse predictions (sets, queries) that cannot be compared with what was measured.

    Raises:
        DataError: when the shapes differ, or a prediction is not finite.
    """
    if predicted.shape != measured.shape:
        raise DataError(
            f"Predicted effects have shape {predicted.shape}, measured ones {measured.shape}.",
            "Predict the effects of the same sets on the same queries.",
        )
    if not np.isfinite(predicted).all():
        place = np.argwhere(~np.isfinite(predicted))[0].tolist()
        raise DataError(
            f"The predicted effect of set {place[0]} on query {place[1]} is not finite.",
            "Check the scores; with an inverse curvature, raise the damping.",
        )


def standard_error(values: NDArray[np.float64]) -> float:
    """Of the mean of `values`, one for each query."""
    return float(values.std(ddof=1) / np.sqrt(len(values)))
