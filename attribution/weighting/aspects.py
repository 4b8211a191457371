"""Group weights under which a query's top attributions share one metadata value with it (METHODS: w, `aspect`).

With w = softmax(r), s = Σ_g w_g C[q, z, g] and ŝ = s / ‖s‖ over all z, maximise over r, within the same entropy bound,

    mean over q of [ mean of the k largest ŝ[q, z] with v(z) = v(q)  −  mean of the k largest with v(z) ≠ v(q) ]

where v is the attribute: author, source, style… The examples most likely to be shown are those at the top, so the
margin is taken there and not over all pairs. Where fewer than k examples have the value, all of them count.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gradtrail.attribution.features.plan import FeaturePlan
from gradtrail.attribution.scoring.contribution_blocks import ContributionBlock, Contributions
from gradtrail.attribution.weighting.learning import TopKSettings, ascend, learned_weighting
from gradtrail.attribution.weighting.levels import Level, group_ties
from gradtrail.errors import DataError, UsageError
from gradtrail.nouns import Weighting

OBJECTIVE = "aspect"


@dataclass(frozen=True)
class Aspect:
    """An attribute of training examples, and the value that each query has of it, "" where it has none."""

    attribute: str
    values: tuple[str, ...]


def learn_aspect(
    contributions: Contributions,
    plan: FeaturePlan,
    aspect: Aspect,
    settings: TopKSettings | None = None,
    level: Level = "layer",
) -> Weighting:
    """The weighting for one aspect, with `aspect:<attribute>` as its objective; uniform where nothing can be learned.

    Queries without the attribute, and those whose value no example has, or every example, are left out.

    Raises:
        UsageError: for fewer than three queries, not more than k examples, or values that do not fit the queries.
        DataError: for contributions that are not finite, or examples without this attribute altogether.
    """
    chosen = settings or TopKSettings()
    ties = group_ties(plan, level)
    reached = ascend(
        lambda: (block.values for block in contributions()),
        ties,
        chosen,
        lambda weights: _margins(contributions, aspect, weights, chosen.k),
    )
    return learned_weighting(f"{OBJECTIVE}:{aspect.attribute}", reached, plan, ties, chosen)


def same_value_share(contributions: Contributions, aspect: Aspect, weights: Tensor, k: int) -> Tensor:
    """The part of each query's k top attributions with its own value, under weights (groups,): (queries,) float64.

    NaN for queries without the attribute.
    """
    kept: Tensor | None = None
    for block in contributions():
        same = _same(block, aspect)
        pool = torch.stack([block.values @ weights, same.double()], dim=2)
        pool = pool if kept is None else torch.cat([kept, pool], dim=1)
        places = pool[:, :, 0].topk(min(k, pool.shape[1]), dim=1).indices
        kept = pool.gather(1, places.unsqueeze(2).expand(-1, -1, 2))
    if kept is None:
        raise DataError("There are no contributions to measure.", "Index at least one example.")
    found = kept[:, :, 1].mean(1)
    found[torch.tensor([value == "" for value in aspect.values])] = torch.nan
    return found


def _margins(contributions: Contributions, aspect: Aspect, weights: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Mean contributions of the k strongest of the query's value minus those of other values: (queries, 1, groups).

    The second tensor says which queries have both.
    """
    own, other = _Strongest(k), _Strongest(k)
    examples, carried = 0, False
    for block in contributions():
        same = _same(block, aspect)
        scores = block.values @ weights
        own.add(block.values, scores, same)
        other.add(block.values, scores, ~same)
        examples += len(block.example_ids)
        carried = carried or any(block.attributes.get(aspect.attribute, ()))
    if not carried:
        raise DataError(
            f"None of {examples} training examples has an attribute {aspect.attribute!r}.",
            "Choose an attribute that the examples of the index carry.",
        )
    known = torch.tensor([value != "" for value in aspect.values])
    return (own.mean() - other.mean()).unsqueeze(1), known & own.found() & other.found()


class _Strongest:
    """Contributions of the k largest scores among marked examples, gathered block by block."""

    def __init__(self, k: int) -> None:
        self._k = k
        self._values = torch.zeros(0)
        self._scores = torch.zeros(0)

    def add(self, values: Tensor, scores: Tensor, marked: Tensor) -> None:
        scores = scores.masked_fill(~marked, -torch.inf)
        if len(self._scores):
            values = torch.cat([self._values, values], dim=1)
            scores = torch.cat([self._scores, scores], dim=1)
        self._scores, places = scores.topk(min(self._k, scores.shape[1]), dim=1)
        self._values = values.gather(1, places.unsqueeze(2).expand(-1, -1, values.shape[2]))

    def found(self) -> Tensor:
        """Whether a query has any: (queries,) bool."""
        return torch.isfinite(self._scores).any(1)

    def mean(self) -> Tensor:
        """(queries, groups); zeros for a query that has none."""
        kept = torch.isfinite(self._scores).double()
        return (self._values * kept.unsqueeze(2)).sum(1) / kept.sum(1).clamp_min(1).unsqueeze(1)


def _same(block: ContributionBlock, aspect: Aspect) -> Tensor:
    """Whether an example has the query's value: (queries, examples) bool."""
    if len(aspect.values) != len(block.values):
        raise UsageError(
            f"{len(aspect.values)} values of {aspect.attribute!r} for {len(block.values)} queries.",
            "Give one value a query, in their order, empty where it has none.",
        )
    found = block.attributes.get(aspect.attribute, [""] * len(block.example_ids))
    numbers: dict[str, int] = {}
    wanted = torch.tensor([numbers.setdefault(value, len(numbers)) for value in aspect.values])
    present = torch.tensor([-1 if value == "" else numbers.get(value, -1) for value in found])
    return wanted.unsqueeze(1) == present
