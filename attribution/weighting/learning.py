"""Group weights learned by ascent: a query's strongest attributions must stand out from the rest (METHODS: w).

With contributions C[q, z, g] = a(z) ⟨[Mφ(q)]_g, φ_g(z)⟩ and w = softmax(r), maximise over r

    mean over q of the mean of the k largest ŝ[q, z],    ŝ = s / ‖s‖ over all z,    s = Σ_g w_g C[q, z, g]

(arXiv 2506.05647). The optimum is collapse onto one group, so the effective number of groups, exp of the entropy of w,
is bounded from below. Nothing of the size examples × queries × groups is held: ‖s‖² = wᵀ K w with K[q] = Σ_z C Cᵀ from
one pass, and every further pass keeps the contributions of each query's k strongest examples alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import exp, log

import torch
from torch import Tensor

from gradtrail.attribution.features.plan import FeaturePlan
from gradtrail.attribution.weighting.levels import GroupTies, Level, group_ties
from gradtrail.errors import DataError, UsageError
from gradtrail.nouns import Weighting

Blocks = Callable[[], Iterator[Tensor]]
"""Contributions (queries, batch, groups) float64 under the uniform weighting, over all examples; called once a pass."""

OBJECTIVE = "self_supervised"
FEWEST_QUERIES = 3
_HALVINGS = 60


@dataclass(frozen=True)
class TopKSettings:
    """How weights are learned.

    Attributes:
        k: strongest examples of a query that must stand out.
        passes: passes over the index; each finds the strongest examples anew, under the weights reached.
        steps: steps of AdamW after each pass.
        learning_rate: of AdamW, decaying to zero as a cosine over all steps.
        weight_decay: pull of the logits towards the uniform weighting.
        least_effective_groups: bound on exp of the entropy of w, as a part of the number of groups.

    Raises:
        UsageError: for numbers that are not positive, or a bound outside 0 to 1.
    """

    k: int = 10
    passes: int = 10
    steps: int = 10
    learning_rate: float = 0.01
    weight_decay: float = 0.01
    least_effective_groups: float = 0.5

    def __post_init__(self) -> None:
        counted = min(self.k, self.passes, self.steps) >= 1
        if not (counted and self.learning_rate > 0 <= self.weight_decay and 0 <= self.least_effective_groups <= 1):
            raise UsageError(
                f"Learning weights with {self}.",
                "Choose positive counts and rate, a decay of at least 0, and a bound between 0 and 1.",
            )

    def least_effective(self, groups: int) -> float:
        """The bound as a number of groups, at least one."""
        return max(1.0, self.least_effective_groups * groups)


@dataclass(frozen=True)
class Ascent:
    """Weights reached: `logits` (groups,) of the softmax, the number of examples and of queries that count, and the
    objective under the uniform weighting and under these weights."""

    logits: Tensor
    examples: int
    queries: int
    before: float
    after: float


def learn_top_k(
    blocks: Blocks, plan: FeaturePlan, settings: TopKSettings | None = None, level: Level = "layer"
) -> Weighting:
    """The learned weighting with its evidence; uniform where there is one group, or nothing to learn from.

    Raises:
        UsageError: for fewer than three queries, or not more than k examples.
        DataError: for contributions that are not finite, or do not fit the plan.
    """
    chosen = settings or TopKSettings()
    ties = group_ties(plan, level)
    reached = ascend(blocks, ties, chosen, lambda weights: (strongest(blocks, weights, chosen.k), None))
    return learned_weighting(OBJECTIVE, reached, plan, ties, chosen)


def ascend(
    blocks: Blocks, ties: GroupTies, settings: TopKSettings, gather: Callable[[Tensor], tuple[Tensor, Tensor | None]]
) -> Ascent | str:
    """Raise `objective` by AdamW, within the bound; where there is nothing to learn, the cause in words.

    `gather` makes one pass for weights (groups,): what must stand out (queries, any number, groups), and which queries
    count (queries,) bool, or None for all that have any contribution.

    Raises:
        UsageError: for fewer than three queries, or not more than k examples.
        DataError: for contributions that are not finite, or do not fit the ties.
    """
    groups = len(ties.places)
    moments, examples = _second_moments(blocks, groups)
    if len(moments) < FEWEST_QUERIES:
        raise UsageError(
            f"{len(moments)} queries are too few to learn weights from.", f"Give at least {FEWEST_QUERIES}."
        )
    if examples <= settings.k:
        raise UsageError(
            f"The {settings.k} strongest of {examples} examples cannot stand out.",
            "Choose a smaller k, or more examples.",
        )
    if len(ties.names) == 1:
        return "one group" if groups == 1 else f"one group at level {ties.level}"
    useful = moments.diagonal(dim1=1, dim2=2).sum(1) > 0
    if not useful.any():
        return "no contribution is different from zero"
    logits = torch.zeros(len(ties.names), dtype=torch.float64)
    first, counted = gather(ties.expanded(logits).softmax(0))
    if counted is not None:
        useful = useful & counted
    if int(useful.sum()) < FEWEST_QUERIES and counted is not None:
        return f"only {int(useful.sum())} queries can be learned from"
    moments = moments[useful]
    optimiser = torch.optim.AdamW([logits], lr=settings.learning_rate, weight_decay=settings.weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, settings.passes * settings.steps)
    bound = settings.least_effective(groups)
    before = objective(ties.expanded(logits), first[useful], moments).item()
    top = first[useful]
    for turn in range(settings.passes):
        if turn:
            top = gather(ties.expanded(logits).softmax(0))[0][useful]
        for _ in range(settings.steps):
            logits.requires_grad_(True)
            optimiser.zero_grad()
            torch.autograd.backward(-objective(ties.expanded(logits), top, moments))
            optimiser.step()
            schedule.step()
            logits.requires_grad_(False)
            logits.copy_(bounded(logits, bound, ties.places))
    reached = ties.expanded(logits)
    after = objective(reached, gather(reached.softmax(0))[0][useful], moments).item()
    return Ascent(reached, examples, int(useful.sum()), before, after)


def learned_weighting(
    objective_name: str, reached: Ascent | str, plan: FeaturePlan, ties: GroupTies, settings: TopKSettings
) -> Weighting:
    """What an ascent reached, as a weighting with its evidence."""
    if isinstance(reached, str):
        return uniform_because(objective_name, reached)
    weights = reached.logits.softmax(0)
    return Weighting(
        objective=objective_name,
        group_weights=dict(zip([group.name for group in plan.groups], (weights * len(weights)).tolist(), strict=True)),
        evidence={
            "level": ties.level,
            "k": settings.k,
            "steps": settings.passes * settings.steps,
            "queries": reached.queries,
            "examples": reached.examples,
            "effective_groups": effective_groups(weights),
            "least_effective_groups": settings.least_effective(len(weights)),
            "objective_uniform": reached.before,
            "objective_learned": reached.after,
        },
    )


def uniform_because(objective_name: str, cause: str) -> Weighting:
    """The uniform weighting where one for `objective_name` was asked for, with the reason in its evidence."""
    return Weighting(evidence={"objective": objective_name, "fell_back_because": cause})


def objective(logits: Tensor, top: Tensor, moments: Tensor) -> Tensor:
    """Mean over queries of the mean ŝ of their strongest examples, for `top` (queries, k, groups)."""
    weights = logits.softmax(0)
    norms = torch.einsum("g,qgh,h->q", weights, moments, weights).clamp_min(torch.finfo(torch.float64).tiny).sqrt()
    return ((top @ weights).mean(1) / norms).mean()


def strongest(blocks: Blocks, weights: Tensor, k: int) -> Tensor:
    """Contributions of each query's k largest scores under weights (groups,), in one pass: (queries, k, groups)."""
    kept: Tensor | None = None
    for block in blocks():
        pool = block if kept is None else torch.cat([kept, block], dim=1)
        places = (pool @ weights).topk(min(k, pool.shape[1]), dim=1).indices
        kept = pool.gather(1, places.unsqueeze(2).expand(-1, -1, pool.shape[2]))
    if kept is None:
        raise DataError("There are no contributions to learn from.", "Index at least one example.")
    return kept


def effective_groups(weights: Tensor) -> float:
    """exp of the entropy of weights that sum to 1: their number when equal, 1 when one has all."""
    return exp(torch.special.entr(weights).sum().item())


def bounded(logits: Tensor, least: float, places: Tensor | None = None) -> Tensor:
    """Logits shrunk towards uniform, as little as it takes, until at least `least` groups are effective.

    With `places` (groups,), the logits are those of level groups, and stored groups are counted (see `GroupTies`).
    """
    centred = logits - logits.mean()
    expand = torch.arange(len(logits)) if places is None else places
    if effective_groups(centred[expand].softmax(0)) >= least:
        return centred
    low, high = 0.0, 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if log(effective_groups((middle * centred)[expand].softmax(0))) >= log(least):
            low = middle
        else:
            high = middle
    return low * centred


def _second_moments(blocks: Blocks, groups: int) -> tuple[Tensor, int]:
    """K[q] = Σ_z C[q, z, :] C[q, z, :]ᵀ, (queries, groups, groups), and the number of examples."""
    moments: Tensor | None = None
    examples = 0
    for block in blocks():
        if block.shape[2] != groups or not torch.isfinite(block).all():
            raise DataError(
                f"Contributions of shape {tuple(block.shape)} are not finite, or not of {groups} groups.",
                "Take queries and rows from one index, and raise the damping.",
            )
        own = block.transpose(1, 2) @ block
        moments = own if moments is None else moments + own
        examples += block.shape[1]
    if moments is None:
        raise DataError("There are no contributions to learn from.", "Index at least one example.")
    return moments, examples
