"""Exact scores of every training row, streamed: top examples, sums by attribute, shares (METHODS: equation (1), share).

Memory does not grow with the number of rows, except for one float and one integer per attribute and row in the second
pass (`overall_influence`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gradtrail.attribution.features.rows import GradientBatch
from gradtrail.attribution.methods.prepared import PreparedQueries
from gradtrail.attribution.scoring.attribute_sums import SIDES, AttributeCodes, AttributeSums
from gradtrail.attribution.scoring.batches import ScoringPass
from gradtrail.attribution.scoring.joint import Member, scoring_pass
from gradtrail.attribution.scoring.permutation_intervals import IntervalShare, interval_shares
from gradtrail.attribution.scoring.ranking import RunningTop
from gradtrail.errors import DataError, StoreError, UsageError
from gradtrail.nouns import Share, Side

Ranked = list[tuple[str, float]]
ByValue = Mapping[str, Mapping[str, Tensor]]
Value = TypeVar("Value")


@dataclass(frozen=True)
class ScoreResult:
    """What one pass over the index found; lists and tensors are in the order of the queries.

    `proponents` are positive scores, largest first, `opponents` negative ones, most negative first; ties by example id.
    `positive_mass` and `negative_mass` (queries,) float64 sum the scores' absolute values over all rows, and
    `attribute_mass[side][name][value]` (queries,) over the rows with that attribute value ("" where it is missing).
    `zero_norm_examples` counts rows without any gradient, which grad_cos scores 0.
    """

    proponents: list[Ranked]
    opponents: list[Ranked]
    positive_mass: Tensor
    negative_mass: Tensor
    attribute_mass: Mapping[Side, ByValue]
    attribute_counts: Mapping[str, Mapping[str, int]]
    example_count: int
    zero_norm_examples: int = 0

    def mass(self, side: Side) -> Tensor:
        """Sum of the absolute scores of one side, (queries,)."""
        return self.positive_mass if side == "proponent" else self.negative_mass


@dataclass(frozen=True)
class OverallInfluence:
    """Mean shares over all queries that have any mass on a side: of single examples, and of attribute values."""

    proponents: Ranked
    opponents: Ranked
    shares: Mapping[Side, Mapping[str, Mapping[str, IntervalShare]]]


def score(queries: PreparedQueries, rows: Callable[[], Iterable[GradientBatch]], *, top_k: int) -> ScoreResult:
    """Score every row that `rows()` yields against every query, exactly.

    Raises:
        DataError: when there are no rows, or a score is not finite.
        StoreError: when rows do not fit the queries.
    """
    return score_pass(scoring_pass([Member(queries, rows)]), top_k=top_k)


def score_pass(scoring: ScoringPass, *, top_k: int) -> ScoreResult:
    """`score` for any scoring pass, over one index or several."""
    count = scoring.query_count
    proponents, opponents = RunningTop(count, top_k), RunningTop(count, top_k)
    sums = AttributeSums(count)
    sided = torch.empty((0, len(SIDES) * count), dtype=torch.float64)
    examples = zero_norms = 0
    for batch, scores in scoring.batches():
        proponents.add(scores.T, batch.example_ids)
        opponents.add(-scores.T, batch.example_ids)
        # Memory that is touched for the first time costs more than what is done in it, so every batch takes the same.
        sided = sided if len(sided) >= scores.shape[1] else sided.new_empty((scores.shape[1], sided.shape[1]))
        sums.add(batch, _sided(scores, sided[: scores.shape[1]]))
        examples += len(batch.example_ids)
        zero_norms += int((batch.squared_norms.sum(1) == 0).sum())
    if examples == 0:
        raise DataError("The index has no rows to score.", "Index a training set with at least one example.")
    totals = sums.totals()
    return ScoreResult(
        proponents=proponents.best(),
        opponents=[[(example_id, -value) for example_id, value in ranked] for ranked in opponents.best()],
        positive_mass=totals["proponent"],
        negative_mass=totals["opponent"],
        attribute_mass=sums.masses(),
        attribute_counts=sums.counts,
        example_count=examples,
        zero_norm_examples=zero_norms,
    )


def overall_influence(
    queries: PreparedQueries,
    rows: Callable[[], Iterable[GradientBatch]],
    result: ScoreResult,
    *,
    top_k: int,
    permutations: int = 200,
    seed: int = 0,
) -> OverallInfluence:
    """A second pass: the mean share of each example over all queries, and what attribute shares chance would give.

    When an attribute is shuffled over the examples, 95 % of the shuffles leave every tested value within its interval.

    Raises:
        StoreError: when the index is no longer the one `result` was computed from.
        DataError: as `score`.
    """
    scoring = scoring_pass([Member(queries, rows)])
    return overall_of_pass(scoring, result, top_k=top_k, permutations=permutations, seed=seed)


def overall_of_pass(
    scoring: ScoringPass, result: ScoreResult, *, top_k: int, permutations: int = 200, seed: int = 0
) -> OverallInfluence:
    """`overall_influence` for any scoring pass, over one index or several."""
    tops = {side: RunningTop(1, top_k) for side in SIDES}
    scales = {side: _inverse_masses(result.mass(side)) for side in SIDES}
    means: dict[Side, list[NDArray[np.float64]]] = {side: [] for side in SIDES}
    codes = AttributeCodes(list(result.attribute_counts))
    for batch, scores in scoring.batches():
        codes.add(batch)
        for side in SIDES:
            mean = scales[side] @ _part(scores, side)
            tops[side].add(mean[:, None], batch.example_ids)
            means[side].append(mean)
    vectors = {side: np.concatenate(means[side]) if means[side] else np.zeros(0) for side in SIDES}
    if len(vectors["proponent"]) != result.example_count or codes.counts() != result.attribute_counts:
        raise StoreError(
            f"The index had {result.example_count} rows in the first pass and {len(vectors['proponent'])} in the "
            "second, or other attributes.",
            "Pin one version of the index for the whole audit.",
        )
    return OverallInfluence(
        proponents=tops["proponent"].best()[0],
        opponents=tops["opponent"].best()[0],
        shares={side: interval_shares(vectors[side], codes, permutations, seed) for side in SIDES},
    )


def shares(result: ScoreResult, overall: OverallInfluence, output_ids: Sequence[str]) -> list[Share]:
    """Shares per output and, with `output_id` None, over all outputs: per side, attribute and value, largest first.

    Values without any share of an output are left out there; a side without mass has no shares.

    Raises:
        UsageError: when `output_ids` does not name every query once.
    """
    if len(output_ids) != len(result.positive_mass) or len(set(output_ids)) != len(output_ids):
        raise UsageError(
            f"{len(output_ids)} output ids for {len(result.positive_mass)} queries, or one of them twice.",
            "Give one id per query, in their order.",
        )
    found = []
    for side in SIDES:
        totals = result.mass(side).tolist()
        for attribute, counts in result.attribute_counts.items():
            training = {value: count / result.example_count for value, count in counts.items()}
            for value, chance in _descending(overall.shares[side][attribute], lambda measured: measured.share):
                found.append(
                    Share(None, side, attribute, value, chance.share, training[value], chance.low, chance.high)
                )
            masses = {value: mass.tolist() for value, mass in result.attribute_mass[side][attribute].items()}
            for position, output_id in enumerate(output_ids):
                total = totals[position]
                parts = {value: mass[position] / total for value, mass in masses.items() if mass[position] > 0}
                for value, part in _descending(parts, lambda share: share):
                    found.append(Share(output_id, side, attribute, value, part, training[value]))
    return found


def _sided(scores: NDArray[np.floating], into: Tensor) -> Tensor:
    """Absolute scores of both sides, zero elsewhere, `into` (batch, 2 × queries) float64: proponents first."""
    count = len(scores)
    into[:, :count] = torch.from_numpy(scores).T
    torch.neg(into[:, :count], out=into[:, count:])
    return into.clamp_(min=0)


def _part(scores: NDArray[np.floating], side: Side) -> NDArray[np.float64]:
    """Absolute scores of one side, zero elsewhere."""
    signed = scores if side == "proponent" else -scores
    part: NDArray[np.float64] = np.maximum(signed, 0.0, dtype=np.float64)
    return part


def _inverse_masses(masses: Tensor) -> NDArray[np.float64]:
    """1 / (Z_q × number of queries with mass), 0 for queries without: the weights of a mean over shares."""
    values = masses.numpy()
    inverse: NDArray[np.float64] = np.divide(1.0, values, out=np.zeros_like(values), where=values > 0)
    return inverse / max(int((values > 0).sum()), 1)


def _descending(mapping: Mapping[str, Value], size: Callable[[Value], float]) -> list[tuple[str, Value]]:
    return sorted(mapping.items(), key=lambda item: (-size(item[1]), item[0]))
