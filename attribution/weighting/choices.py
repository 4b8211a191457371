"""Several weightings from few ascents, of which measured effects choose one.

The optimum of the objective in `weight_learning` is collapse, so that it cannot say how far to go (METHODS: w), nor for
how many examples. Each ascent therefore gives a direction; weights along it that leave more groups effective cost no
further pass. Which of them helps, if any, is for effects on other queries to say: `best_or_uniform`.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

from torch import Tensor

from gradtrail.attribution.features.plan import FeaturePlan
from gradtrail.attribution.weighting.learning import (
    OBJECTIVE,
    Ascent,
    Blocks,
    TopKSettings,
    ascend,
    bounded,
    learned_weighting,
    strongest,
    uniform_because,
)
from gradtrail.attribution.weighting.levels import GroupTies, Level, group_ties
from gradtrail.nouns import Weighting

FEW_STRONGEST = 1
"""Tried beside the k of the settings. A sixth of the examples does harm (docs/fidelity-evidence.md)."""
STRENGTHS = (0.0, 0.5, 0.8)
"""Parts of the way from the bound on effective groups, where weights are strongest, to all groups."""
_PASSES, _STEPS, _RATE = 3, 30, 0.1
"""Few passes over the index that reach the bound; at a rate of 0.01 logits move by half a unit at most."""


def top_k_choices(
    blocks: Blocks, plan: FeaturePlan, settings: TopKSettings | None = None, level: Level = "layer"
) -> list[Weighting]:
    """Different weightings, one for each number of strongest examples and strength, or the uniform one with a reason.

    Of `settings`, the k and the bound on effective groups count.

    Raises:
        UsageError: for fewer than three queries, or not more than k examples.
        DataError: for contributions that are not finite, or do not fit the plan.
    """
    chosen = replace(settings or TopKSettings(), passes=_PASSES, steps=_STEPS, learning_rate=_RATE)
    ties = group_ties(plan, level)
    found: list[Weighting] = []
    for k in sorted({min(FEW_STRONGEST, chosen.k), chosen.k}):
        own = replace(chosen, k=k)
        reached = ascend(blocks, ties, own, partial(_gathered, blocks, k))
        if isinstance(reached, str):
            return [uniform_because(OBJECTIVE, reached)]
        found += [_shrunk(reached, plan, ties, own, strength) for strength in STRENGTHS]
    return list({tuple(each.group_weights.values()): each for each in found}.values())


def _gathered(blocks: Blocks, k: int, weights: Tensor) -> tuple[Tensor, None]:
    return strongest(blocks, weights, k), None


def _shrunk(reached: Ascent, plan: FeaturePlan, ties: GroupTies, settings: TopKSettings, strength: float) -> Weighting:
    least = settings.least_effective_groups
    own = replace(settings, least_effective_groups=least + strength * (1 - least))
    logits = bounded(reached.logits, own.least_effective(len(ties.places)))
    weighting = learned_weighting(OBJECTIVE, replace(reached, logits=logits), plan, ties, own)
    # What the ascent reached says nothing of weights that were shrunk since.
    evidence: dict[str, Any] = {name: one for name, one in weighting.evidence.items() if name != "objective_learned"}
    return replace(weighting, evidence=evidence | {"strength": 1 - strength, "objective_ascended": reached.after})
