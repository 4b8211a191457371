"""The linear datamodelling score: do summed scores predict what models retrained on subsets do (arXiv 2303.14186)?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from gradtrail.attribution.fidelity.evaluation import chosen_queries, refuse_unequal, standard_error
from gradtrail.attribution.fidelity.noise_ceilings import split_half_ceilings
from gradtrail.attribution.numerics.correlation import spearmans
from gradtrail.errors import DataError, UsageError

Measure = Literal["loss", "margin"]


@dataclass(frozen=True)
class Retrained:
    """Losses of queries under models retrained without sets of examples.

    `by_seed` is (seeds, amounts, sets, queries) float64; `steps` are the amounts of training.
    """

    removed: tuple[frozenset[str], ...]
    query_ids: tuple[str, ...]
    steps: tuple[int, ...]
    by_seed: NDArray[np.float64]

    def outputs(self, steps: int, measure: Measure = "loss") -> NDArray[np.float64]:
        """What subsets are ranked by, larger where the model is surer of the query: (seeds, sets, queries).

        `loss` is −loss; `margin` is log(p / (1 − p)) of a loss −log p, which spreads out what is nearly certain.

        Raises:
            UsageError: for an amount of training that was not measured, or a margin of losses that no −log p has.
        """
        if steps not in self.steps:
            raise UsageError(f"Nothing was measured after {steps} steps.", f"Choose one of {list(self.steps)}.")
        losses = self.by_seed[:, self.steps.index(steps)]
        if measure == "loss":
            return -losses
        if (losses <= 0).any():
            raise UsageError(
                f"A margin of a loss of {losses.min():.4g}, where −log p of one class is expected.",
                "Rank by the loss instead.",
            )
        found: NDArray[np.float64] = -losses - np.log(-np.expm1(-losses))
        return found


@dataclass(frozen=True)
class DatamodelScore:
    """Rank correlation over subsets, as a mean over queries with its standard error.

    `ceiling` is what a perfect prediction could reach against this many seeds.
    """

    measure: Measure
    steps: int
    value: float
    standard_error: float
    ceiling: float
    queries: int
    subsets: int
    seeds: int


def datamodel_score(
    predicted: NDArray[np.float64],
    retrained: Retrained,
    *,
    steps: int | None = None,
    measure: Measure = "loss",
    queries: Sequence[int] | None = None,
) -> DatamodelScore:
    """The score of `predicted` (sets, queries): Σ of scores over the examples *left out* of each subset.

    That is what `predicted_effects` returns. Scores sum to a constant over a subset and what it leaves out, so that the
    sum over the subset ranks subsets in the opposite order: it is compared as −`predicted`. By default after the
    longest training and over all queries; a query that all subsets serve alike, or are predicted alike, counts as 0.

    Raises:
        UsageError: for fewer than three queries or subsets, subsets that are all equal, fewer than two seeds, or an
            amount that was not measured.
        DataError: when the shapes differ, or a prediction is not finite.
    """
    longest = retrained.steps[-1] if steps is None else steps
    outputs = retrained.outputs(longest, measure)
    refuse_unequal(predicted, outputs.mean(0))
    if len(outputs) < 2:  # noqa: PLR2004 (the ceiling splits the seeds in half)
        raise UsageError("One seed of retraining.", "Give at least two: single-seed scores are mostly noise.")
    if len(set(retrained.removed)) < 3:  # noqa: PLR2004 (two ranks agree or not)
        raise UsageError(
            f"{len(set(retrained.removed))} different subsets cannot be ranked.",
            "Retrain on at least three, better 64.",
        )
    if not np.isfinite(outputs).all():
        raise DataError("A measured output is not finite.", "Train with a smaller learning rate.")
    chosen = chosen_queries(queries, predicted.shape[1])
    ranks = spearmans(-predicted[:, chosen], outputs.mean(0)[:, chosen])
    return DatamodelScore(
        measure=measure,
        steps=longest,
        value=float(ranks.mean()),
        standard_error=standard_error(ranks),
        ceiling=split_half_ceilings(outputs[:, :, chosen]).spearman,
        queries=len(chosen),
        subsets=len(retrained.removed),
        seeds=len(outputs),
    )
