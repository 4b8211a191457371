"""Can scores find what was planted: wrong labels by self-influence, duplicates among the top examples of a query."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gradtrail.attribution.fidelity.evaluation import FEWEST_QUERIES, standard_error
from gradtrail.attribution.numerics.correlation import ranks
from gradtrail.errors import DataError, UsageError


def mislabel_auc(self_influence: Mapping[str, float], mislabelled: Collection[str]) -> float:
    """Area under the ROC curve of self-influence (by example id) for wrong labels: 1 finds all first, ½ is chance.

    It is the probability that a wrong label scores higher than a right one; equal scores count one half.

    Raises:
        UsageError: when no label, or every label, is wrong.
        DataError: naming a mislabelled example without a score, or a score that is not finite.
    """
    wrong = set(mislabelled)
    missing = sorted(wrong - set(self_influence))
    if missing:
        raise DataError(
            f"{len(missing)} mislabelled examples have no score, for example {missing[0]}.", "Score every example."
        )
    if not 0 < len(wrong) < len(self_influence):
        raise UsageError(
            f"{len(wrong)} of {len(self_influence)} labels are wrong.", "Give some wrong labels and some right ones."
        )
    for example_id, score in self_influence.items():
        if not np.isfinite(score):
            raise DataError(f"The score of example {example_id} is not finite.", "Leave out quarantined examples.")
    place = ranks(np.array(list(self_influence.values()))[:, None])[:, 0]
    of_wrong = np.array([example_id in wrong for example_id in self_influence])
    # Mann–Whitney: the sum of ranks of the wrong ones, less the least it can be.
    above = place[of_wrong].sum() - len(wrong) * (len(wrong) + 1) / 2
    return float(above / (len(wrong) * (len(self_influence) - len(wrong))))


@dataclass(frozen=True)
class Recall:
    """Share of planted examples among the first k, as a mean over queries with its standard error."""

    k: int
    value: float
    standard_error: float
    queries: int


def duplicate_recall(tops: Sequence[Sequence[str]], planted: Sequence[Collection[str]], k: int) -> Recall:
    """Recall@k: which share of each query's planted duplicates stands among the first k of its ranked examples.

    Args:
        tops: for each query, ids of examples by falling score, at least the first k.
        planted: for each query, ids of its duplicates in the training set; at most k can be found.

    Raises:
        UsageError: for fewer than three queries, a k below 1, or a query without duplicates.
        DataError: when the lists differ in length, or are shorter than k.
    """
    check_tops(tops, k)
    if len(planted) != len(tops):
        raise DataError(f"Duplicates of {len(planted)} queries for the tops of {len(tops)}.", "Give one each.")
    if not all(planted):
        raise UsageError(
            f"Query {[bool(each) for each in planted].index(False)} has no duplicates to find.", "Leave it out."
        )
    found: NDArray[np.float64] = np.array(
        [len(set(top[:k]) & set(wanted)) / min(k, len(set(wanted))) for top, wanted in zip(tops, planted, strict=True)]
    )
    return Recall(k, float(found.mean()), standard_error(found), len(found))


def check_tops(tops: Sequence[Sequence[str]], k: int) -> None:
    """Refuse ranked examples that do not hold the first k of at least three queries.

    Raises:
        UsageError: for fewer than three queries, or a k below 1.
        DataError: when a query has fewer than k ranked examples.
    """
    if k < 1:
        raise UsageError(f"The first {k} examples.", "Choose at least 1.")
    if len(tops) < FEWEST_QUERIES:
        raise UsageError(f"{len(tops)} queries are too few for a mean.", f"Give at least {FEWEST_QUERIES}.")
    shortest = min(map(len, tops))
    if shortest < k:
        raise DataError(f"A query has {shortest} ranked examples, but k is {k}.", "Score with top_k of at least k.")
