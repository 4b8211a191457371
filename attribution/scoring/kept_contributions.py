"""Which parameter groups carried the kept attributions: each score split by group, by reading only their rows again.

Equation (1) is a sum over groups, so a score is exactly the sum of its parts Σ_g w_g C[q, z, g]. A group's share of an
output and side is its part of the sum of the kept scores there: all groups make 1, and one that pulls the other way is
negative.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gradtrail.attribution.features.margins import LEAST_MARGIN, one_minus_probability
from gradtrail.attribution.features.plan import FeaturePlan
from gradtrail.attribution.features.rows import GradientBatch
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
class ScoredIndex:
    """One index of those that were scored: its prepared queries, and a way to read a few of its rows by example id."""

    queries: PreparedQueries
    rows_of: Callable[[Sequence[str]], Iterable[GradientBatch]]


@dataclass(frozen=True)
class ScoreSplit:
    """`values` (attributions, groups) float64 of some attributions, given by their `places` in the list."""

    places: Tensor
    values: Tensor


def split_scores(
    members: Sequence[ScoredIndex], attributions: Sequence[Attribution], plan: FeaturePlan, combination: Combination
) -> Iterator[ScoreSplit]:
    """The part of each group in each score, block by block; over the groups they add up to the scores.

    Memory holds the rows of 1,024 examples at a time, whatever the number of attributions.

    Raises:
        StoreError: an example or output is no longer there, or rows do not fit the plan.
    """
    by_example: dict[str, list[int]] = {}
    for place, attribution in enumerate(attributions):
        by_example.setdefault(attribution.example_id, []).append(place)
    outputs = [_output_numbers(each.queries, attributions) for each in members]
    named = sorted(by_example)
    for start in range(0, len(named), _EXAMPLES_AT_ONCE):
        wanted = named[start : start + _EXAMPLES_AT_ONCE]
        places = torch.tensor([place for example_id in wanted for place in by_example[example_id]])
        counts = torch.tensor([len(by_example[example_id]) for example_id in wanted])
        rows = [_Rows.read(each, wanted, plan, combination) for each in members]
        examples = [own.numbers_of(wanted).repeat_interleave(counts) for own in rows]
        size = max(1, _MOST_VALUES // plan.dimension)
        for first in range(0, len(places), size):
            block = places[first : first + size]
            here = [each[first : first + size] for each in examples]
            total = torch.zeros(len(block), len(plan.groups), dtype=torch.float64)
            for each, own, of_outputs, of_examples in zip(members, rows, outputs, here, strict=True):
                total += own.split(each.queries, of_outputs[block], of_examples, plan)
            if combination == "mean_margin":
                margins = torch.stack([own.margins[chosen] for own, chosen in zip(rows, here, strict=True)]).mean(0)
                total *= margins.unsqueeze(1) / len(members)
            yield ScoreSplit(block, total)


def _output_numbers(queries: PreparedQueries, attributions: Sequence[Attribution]) -> Tensor:
    """The row of each attribution's output among the queries, (attributions,)."""
    by_output = {output_id: number for number, output_id in enumerate(queries.query_ids)}
    strangers = sorted({each.output_id for each in attributions} - by_output.keys())
    if strangers:
        raise StoreError(f"Output {strangers[0]} is not among the queries.", "Pass the queries that were scored.")
    return torch.tensor([by_output[each.output_id] for each in attributions])


def group_contributions(
    members: Sequence[ScoredIndex],
    attributions: Sequence[Attribution],
    plan: FeaturePlan,
    combination: Combination,
) -> list[GroupContribution]:
    """Shares of every group: the mean over outputs first, then output by output, proponents before opponents.

    Groups are in the order of the plan. An output without attributions on a side has none there.

    Raises:
        StoreError: as `split_scores`, and where the parts do not add up to the scores.
    """
    sums = _Sums(attributions, len(plan.groups))
    for split in split_scores(members, attributions, plan, combination):
        sums.add(split)
    found = sums.shares()
    shares: dict[tuple[str | None, Side], Tensor] = {}
    for side in SIDES:
        of_side = [share for key, share in found.items() if key[1] == side]
        if of_side:
            shares[None, side] = torch.stack(of_side).mean(0)
    for output_id in dict.fromkeys(attribution.output_id for attribution in attributions):
        for side in SIDES:
            if (output_id, side) in found:
                shares[output_id, side] = found[output_id, side]
    return [
        GroupContribution(output_id, side, group.name, part)
        for (output_id, side), share in shares.items()
        for group, part in zip(plan.groups, share.tolist(), strict=True)
    ]


class _Sums:
    """Parts and scores of each output and side, added up in the order in which they come."""

    def __init__(self, attributions: Sequence[Attribution], groups: int) -> None:
        self._keys = [(each.output_id, each.side) for each in attributions]
        self._given = np.array([each.score for each in attributions])
        count = len(set(self._keys))
        self._numbers: dict[tuple[str, Side], int] = {}
        self._parts, self._sizes, self._scores = np.zeros((count, groups)), np.zeros(count), np.zeros(count)

    def add(self, split: ScoreSplit) -> None:
        numbers = self._numbers
        own = [numbers.setdefault(self._keys[place], len(numbers)) for place in split.places.tolist()]
        np.add.at(self._parts, own, split.values.numpy())
        np.add.at(self._sizes, own, split.values.abs().sum(1).numpy())
        np.add.at(self._scores, own, self._given[split.places.numpy()])

    def shares(self) -> dict[tuple[str, Side], Tensor]:
        """(groups,) adding up to 1, for each output and side whose scores are not all zero."""
        found = {}
        for key, parts, size, scores in zip(
            self._numbers, torch.from_numpy(self._parts), self._sizes.tolist(), self._scores.tolist(), strict=True
        ):
            if scores == 0:
                continue
            total = parts.sum().item()
            if abs(total - scores) > _TOLERANCE * size or total == 0:
                raise StoreError(
                    f"The scores of output {key[0]} add up to {scores:.6g}, but their parts by group to {total:.6g}.",
                    "Take the queries and the version of the index that were scored; `gradtrail verify` checks the "
                    "index.",
                )
            found[key] = parts / total
        return found


@dataclass(frozen=True)
class _Rows:
    """Rows of one index by example id: float64 vectors times a(z), and 1 − p where kernels are averaged."""

    number: dict[str, int]
    vectors: Tensor
    margins: Tensor

    @classmethod
    def read(cls, member: ScoredIndex, wanted: Sequence[str], plan: FeaturePlan, combination: Combination) -> _Rows:
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

    def split(self, queries: PreparedQueries, outputs: Tensor, examples: Tensor, plan: FeaturePlan) -> Tensor:
        """(attributions, groups) for this index alone, by the rows of their outputs and of their examples."""
        products = queries.vectors[outputs].double() * self.vectors[examples]
        return torch.stack([products[:, columns].sum(1) for columns in plan.slices], dim=1)

    def numbers_of(self, example_ids: Sequence[str]) -> Tensor:
        """The row of each example, (examples,)."""
        return torch.tensor([self.number[example_id] for example_id in example_ids])
