"""Brittleness: does an output flip once the examples that support it most are removed and the model retrained?

A counterfactual yardstick (arXiv 2202.00622): the better a method finds what an output rests on, the more outputs flip
for the same number of removed examples. Beside it belongs the rate of a random removal of as many.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from gradtrail.attribution.fidelity.evaluation import standard_error
from gradtrail.attribution.yardsticks.detection import check_tops
from gradtrail.errors import DataError, UsageError

Retrain: TypeAlias = Callable[[int, frozenset[str]], Sequence[str]]
"""From a seed and the removed ids to what the retrained model says for every query, such as `Retraining.emitted`."""


@dataclass(frozen=True)
class Brittleness:
    """Share of queries whose output flips without their k most supportive examples.

    `flips` holds each query's own share over the seeds; the standard error is over queries.
    """

    k: int
    flip_rate: float
    standard_error: float
    queries: int
    flips: tuple[float, ...]


def brittleness(tops: Sequence[Sequence[str]], k: int, retrain: Retrain, seeds: Sequence[int]) -> Brittleness:
    """Retrain without the first k examples of each query, and compare with retraining on all data, seed by seed.

    It takes one retraining on all data and one a query, for each seed; queries with the same k examples share one.

    Args:
        tops: for each query, ids of its proponents by falling score, at least the first k.

    Raises:
        UsageError: for fewer than three queries, a k below 1, or no seed.
        DataError: when a query has fewer than k proponents, or `retrain` answers for another number of queries.
    """
    check_tops(tops, k)
    if not seeds:
        raise UsageError("No seed to retrain with.", "Give at least one.")
    removed = [frozenset(top[:k]) for top in tops]
    flips = np.zeros((len(seeds), len(tops)))
    for place, seed in enumerate(seeds):
        whole = _said(retrain, seed, frozenset(), len(tops))
        for without in dict.fromkeys(removed):
            said = _said(retrain, seed, without, len(tops))
            for query, own in enumerate(removed):
                if own == without:
                    flips[place, query] = said[query] != whole[query]
    by_query = flips.mean(0)
    return Brittleness(k, float(by_query.mean()), standard_error(by_query), len(tops), tuple(by_query.tolist()))


def _said(retrain: Retrain, seed: int, without: frozenset[str], count: int) -> Sequence[str]:
    said = retrain(seed, without)
    if len(said) != count:
        raise DataError(f"Retraining answers for {len(said)} queries, where {count} are ranked.", "Use the same ones.")
    return said
