"""Which parameter groups carried the kept attributions: each score split by group, by reading only their rows again.

Equation (1) is a sum over groups, so a score is exactly the sum of its parts Σ_g w_g C[q, z, g]. A group's share of an
output and side is its part of the sum of the kept scores there: all groups make 1, and one that pulls the other way is
negative.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gradtrail.attribution.features.margins import LEAST_MARGIN, one_minus_probability
from gradtrail.attribution.features.plan import FeaturePlan
from gradtrail.attribution.features.rows import FeatureRows
from gradtrail.attribution.methods.prepared import PreparedQueries
from gradtrail.attribution.methods.registry import Combination, inverse_norms
from gradtrail.attribution.scoring.attribute_sums import SIDES
from gradtrail.errors import StoreError
from gradtrail.nouns import Attribution, GroupContribution, Side

_EXAMPLES_AT_ONCE = 1024
_MOST_VALUES = 1 << 20
"""Numbers multiplied out at once: 8 MB in float64, three times."""
_TOLERANCE = 1e-3
"""Scores are float32 sums over thousands of columns; what differs by more comes from other rows or queries."""


@dataclass(frozen=True)
class KeptRows:
    """One index of those that were scored: its prepared queries, and a way to read a few of its rows by example id."""

    queries: PreparedQueries
    rows_of: Callable[[Sequence[str]], Iterable[FeatureRows]]


@dataclass(frozen=True)
class ScoreSplit:
    """`values` (attributions, groups) float64 of some attributions, given by their `places` in the list."""

    places: Tensor
    values: Tensor


def split_scores(
    members: Sequence[KeptRows], attributions: Sequence[Attribution], plan: FeaturePlan, combination: Combination
) -> Iterator[ScoreSplit]:
    """The part of each group in each score, block by block; over the groups they add up to the scores.

    Memory holds the rows of 1,024 examples at a time, whatever the number of attributions.

    Raises:
        StoreError: an example or output is no longer there, or rows do not fit the plan.
    """
    by_example: dict[str, list[int]] = {}
    for place, attribution in enumerate(attributions):
        by_example.setdefault(attribution.example_id, []).append(place)
    numbers = [{output_id: number for number, output_id in enumerate(each.queries.query_ids)} for each in members]
    named = sorted(by_example)
    for start in range(0, len(named), _EXAMPLES_AT_ONCE):
        wanted = named[start : start + _EXAMPLES_AT_ONCE]
        places = [place for example_id in wanted for place in by_example[example_id]]
        rows = [_Rows.read(each, wanted, plan, combination) for each in members]
        size = max(1, _MOST_VALUES // plan.dimension)
        for block in (places[first : first + size] for first in range(0, len(places), size)):
            total = torch.zeros(len(block), len(plan.groups), dtype=torch.float64)
            for each, own, by_output in zip(members, rows, numbers, strict=True):
                total += own.split(each.queries, by_output, [attributions[place] for place in block], plan)
            if combination == "mean_margin":
                margins = torch.stack([own.margins_of([attributions[p] for p in block]) for own in rows]).mean(0)
                total *= margins.unsqueeze(1) / len(members)
            yield ScoreSplit(torch.tensor(block), total)


def group_contributions(
    members: Sequence[KeptRows],
    attributions: Sequence[Attribution],
    plan: FeaturePlan,
    combination: Combination,
) -> list[GroupContribution]:
    """Shares of every group: the mean over outputs first, then output by output, proponents before opponents.

    Groups are in the order of the plan. An output without attributions on a side has none there.

    Raises:
        StoreError: as `split_scores`, and where the parts do not add up to the scores.
    """
    sums: dict[tuple[str, Side], _Sums] = {}
    for split in split_scores(members, attributions, plan, combination):
        for place, values in zip(split.places.tolist(), split.values, strict=True):
            found = attributions[place]
            sums.setdefault((found.output_id, found.side), _Sums(len(plan.groups))).add(found.score, values)
    shares: dict[tuple[str | None, Side], Tensor] = {}
    for side in SIDES:
        of_side = [share for key, each in sums.items() if key[1] == side and (share := each.share(key[0])) is not None]
        if of_side:
            shares[None, side] = torch.stack(of_side).mean(0)
    for output_id in dict.fromkeys(attribution.output_id for attribution in attributions):
        for side in SIDES:
            each = sums.get((output_id, side))
            share = None if each is None else each.share(output_id)
            if share is not None:
                shares[output_id, side] = share
    return [
        GroupContribution(output_id, side, group.name, part)
        for (output_id, side), share in shares.items()
        for group, part in zip(plan.groups, share.tolist(), strict=True)
    ]


class _Sums:
    """Parts and scores of one output and side, added up."""

    def __init__(self, groups: int) -> None:
        self._parts = torch.zeros(groups, dtype=torch.float64)
        self._size = 0.0
        self._scores = 0.0

    def add(self, score: float, values: Tensor) -> None:
        self._parts += values
        self._size += values.abs().sum().item()
        self._scores += score

    def share(self, output_id: str) -> Tensor | None:
        """(groups,), adding up to 1; None where all scores are zero."""
        if self._scores == 0:
            return None
        total = self._parts.sum().item()
        if abs(total - self._scores) > _TOLERANCE * self._size or total == 0:
            raise StoreError(
                f"The scores of output {output_id} add up to {self._scores:.6g}, but their parts by group to "
                f"{total:.6g}.",
                "Take the queries and the version of the index that were scored; `gradtrail verify` checks the index.",
            )
        return self._parts / total


@dataclass(frozen=True)
class _Rows:
    """Rows of one index by example id: float64 vectors times a(z), and 1 − p where kernels are averaged."""

    number: dict[str, int]
    vectors: Tensor
    margins: Tensor

    @classmethod
    def read(cls, member: KeptRows, wanted: Sequence[str], plan: FeaturePlan, combination: Combination) -> _Rows:
        pieces = list(member.rows_of(wanted))
        ids = [example_id for piece in pieces for example_id in piece.example_ids]
        if missing := sorted(set(wanted) - set(ids)):
            raise StoreError(
                f"The index no longer holds example {missing[0]}, which was scored.",
                "Restore it from a backup, or index again.",
            )
        vectors = torch.cat([piece.vectors.double() for piece in pieces])
        squares = torch.cat([piece.squared_norms for piece in pieces])
        losses = torch.cat([piece.losses for piece in pieces])
        if not vectors.shape[1] == member.queries.vectors.shape[1] == plan.dimension:
            raise StoreError(
                f"Index rows have {vectors.shape[1]} columns, the queries {member.queries.vectors.shape[1]} and the "
                f"plan {plan.dimension}.",
                "Prepare the queries with the plan of this index.",
            )
        if member.queries.train_scale == "inverse_norm":
            vectors = vectors * inverse_norms(squares).unsqueeze(1)
        margins = torch.ones(len(ids), dtype=torch.float64)
        if combination == "mean_margin":
            margins = one_minus_probability(losses).clamp_min(LEAST_MARGIN)
            vectors = vectors / margins.unsqueeze(1)
        return cls({example_id: number for number, example_id in enumerate(ids)}, vectors, margins)

    def split(
        self,
        queries: PreparedQueries,
        by_output: dict[str, int],
        attributions: Sequence[Attribution],
        plan: FeaturePlan,
    ) -> Tensor:
        """(attributions, groups) for this index alone."""
        strangers = sorted({each.output_id for each in attributions} - by_output.keys())
        if strangers:
            raise StoreError(f"Output {strangers[0]} is not among the queries.", "Pass the queries that were scored.")
        outputs = torch.tensor([by_output[each.output_id] for each in attributions])
        products = queries.vectors[outputs].double() * self.vectors[self._rows(attributions)]
        return torch.stack([products[:, columns].sum(1) for columns in plan.slices], dim=1)

    def margins_of(self, attributions: Sequence[Attribution]) -> Tensor:
        """1 − p of each attribution's example, (attributions,)."""
        return self.margins[self._rows(attributions)]

    def _rows(self, attributions: Sequence[Attribution]) -> Tensor:
        return torch.tensor([self.number[each.example_id] for each in attributions])
