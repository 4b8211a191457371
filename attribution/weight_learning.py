"""Group weights learned without labels: a query's strongest attributions must stand out from the rest (METHODS: w).

With contributions C[q, z, g] = a(z) ⟨[Mφ(q)]_g, φ_g(z)⟩ and w = softmax(r), maximise over r

    mean over q of the mean of the k largest ŝ[q, z],    ŝ = s / ‖s‖ over all z,    s = Σ_g w_g C[q, z, g]

(arXiv 2506.05647). The optimum is collapse onto one group, so the effective number of groups, exp of the entropy of w,
is bounded from below. Nothing of the size examples × queries × groups is held: ‖s‖² = wᵀ K w with K[q] = Σ_z C Cᵀ from
one pass, and every further pass keeps the contributions of each query's k strongest examples alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from math import exp, log

import torch
from torch import Tensor

from gradtrail.attribution.features import FeaturePlan, FeatureRows
from gradtrail.attribution.method_registry import inverse_norms
from gradtrail.attribution.prepared import PreparedQueries
from gradtrail.errors import DataError, UsageError
from gradtrail.nouns import Weighting

Contributions = Callable[[], Iterator[Tensor]]
"""Blocks (queries, batch, groups) float64 under the uniform weighting, over all examples; called once a pass."""

OBJECTIVE = "top_k"
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


def contribution_blocks(
    queries: PreparedQueries, rows: Callable[[], Iterable[FeatureRows]], plan: FeaturePlan
) -> Contributions:
    """Contributions of stored rows to queries that were prepared under the uniform weighting."""

    def blocks() -> Iterator[Tensor]:
        for batch in rows():
            vectors = batch.vectors.to(queries.vectors.dtype)
            parts = [queries.vectors[:, columns] @ vectors[:, columns].T for columns in plan.slices]
            block = torch.stack(parts, dim=2).double()
            if queries.train_scale == "inverse_norm":
                block = block * inverse_norms(batch.squared_norms)[None, :, None]
            yield block

    return blocks


def learn_top_k(contributions: Contributions, plan: FeaturePlan, settings: TopKSettings | None = None) -> Weighting:
    """The learned weighting with its evidence; uniform where there is one group, or nothing to learn from.

    Raises:
        UsageError: for fewer than three queries, or not more than k examples.
        DataError: for contributions that are not finite, or do not fit the plan.
    """
    chosen = settings or TopKSettings()
    names = [group.name for group in plan.groups]
    moments, examples = _second_moments(contributions, len(names))
    useful = moments.diagonal(dim1=1, dim2=2).sum(1) > 0
    if len(moments) < FEWEST_QUERIES:
        raise UsageError(
            f"{len(moments)} queries are too few to learn weights from.", f"Give at least {FEWEST_QUERIES}."
        )
    if examples <= chosen.k:
        raise UsageError(
            f"The {chosen.k} strongest of {examples} examples cannot stand out.",
            "Choose a smaller k, or more examples.",
        )
    if len(names) == 1 or not useful.any():
        cause = "one group" if len(names) == 1 else "no contribution is different from zero"
        return Weighting(evidence={"objective": OBJECTIVE, "fell_back_because": cause})
    moments = moments[useful]
    logits = torch.zeros(len(names), dtype=torch.float64)
    optimiser = torch.optim.AdamW([logits], lr=chosen.learning_rate, weight_decay=chosen.weight_decay)
    total = chosen.passes * chosen.steps
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, total)
    bound = max(1.0, chosen.least_effective_groups * len(names))
    before = objective(logits, strongest(contributions, logits, chosen.k)[useful], moments).item()
    for _ in range(chosen.passes):
        top = strongest(contributions, logits, chosen.k)[useful]
        for _ in range(chosen.steps):
            logits.requires_grad_(True)
            optimiser.zero_grad()
            torch.autograd.backward(-objective(logits, top, moments))
            optimiser.step()
            schedule.step()
            logits.requires_grad_(False)
            logits.copy_(bounded(logits, bound))
    weights = logits.softmax(0)
    after = objective(logits, strongest(contributions, logits, chosen.k)[useful], moments).item()
    return Weighting(
        objective=OBJECTIVE,
        group_weights=dict(zip(names, (weights * len(names)).tolist(), strict=True)),
        evidence={
            "k": chosen.k,
            "steps": total,
            "queries": int(useful.sum()),
            "examples": examples,
            "effective_groups": effective_groups(weights),
            "least_effective_groups": bound,
            "objective_uniform": before,
            "objective_learned": after,
        },
    )


def objective(logits: Tensor, top: Tensor, moments: Tensor) -> Tensor:
    """Mean over queries of the mean ŝ of their strongest examples, for `top` (queries, k, groups)."""
    weights = logits.softmax(0)
    norms = torch.einsum("g,qgh,h->q", weights, moments, weights).clamp_min(torch.finfo(torch.float64).tiny).sqrt()
    return ((top @ weights).mean(1) / norms).mean()


def strongest(contributions: Contributions, logits: Tensor, k: int) -> Tensor:
    """Contributions of each query's k largest scores under the weights, in one pass: (queries, k, groups)."""
    weights = logits.detach().softmax(0)
    kept: Tensor | None = None
    for block in contributions():
        pool = block if kept is None else torch.cat([kept, block], dim=1)
        places = (pool @ weights).topk(min(k, pool.shape[1]), dim=1).indices
        kept = pool.gather(1, places.unsqueeze(2).expand(-1, -1, pool.shape[2]))
    if kept is None:
        raise DataError("There are no contributions to learn from.", "Index at least one example.")
    return kept


def effective_groups(weights: Tensor) -> float:
    """exp of the entropy of weights that sum to 1: their number when equal, 1 when one has all."""
    return exp(torch.special.entr(weights).sum().item())


def bounded(logits: Tensor, least: float) -> Tensor:
    """Logits shrunk towards uniform, as little as it takes, until at least `least` groups are effective."""
    centred = logits - logits.mean()
    if effective_groups(centred.softmax(0)) >= least:
        return centred
    low, high = 0.0, 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if log(effective_groups((middle * centred).softmax(0))) >= log(least):
            low = middle
        else:
            high = middle
    return low * centred


def _second_moments(contributions: Contributions, groups: int) -> tuple[Tensor, int]:
    """K[q] = Σ_z C[q, z, :] C[q, z, :]ᵀ, (queries, groups, groups), and the number of examples."""
    moments: Tensor | None = None
    examples = 0
    for block in contributions():
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
