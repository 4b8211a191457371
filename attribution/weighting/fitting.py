"""One interface for all ways to fit group weights (METHODS: w); `attribution.features.weights` applies them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal, TypeVar, get_args

from torch import Tensor

from gradtrail.attribution.features.plan import FeaturePlan
from gradtrail.attribution.scoring.contribution_blocks import Contributions
from gradtrail.attribution.weighting.aspects import Aspect, learn_aspect
from gradtrail.attribution.weighting.choices import top_k_choices
from gradtrail.attribution.weighting.effects import EffectSplit, best_or_uniform, chosen_or_uniform, fit_effects
from gradtrail.attribution.weighting.learning import TopKSettings, learn_top_k
from gradtrail.attribution.weighting.levels import Level
from gradtrail.errors import UsageError
from gradtrail.nouns import Weighting

__all__ = [
    "Aspect",
    "EffectSplit",
    "FittingSettings",
    "Level",
    "Objective",
    "best_or_uniform",
    "chosen_or_uniform",
    "fit_weighting",
    "self_supervised_choices",
]

Value = TypeVar("Value")
Objective = Literal["self_supervised", "further_training", "aspect"]
"""What weights are fitted for; each is described in the module of its function."""


@dataclass(frozen=True)
class FittingSettings:
    """How weights are fitted, under any objective.

    Attributes:
        level: groups whose weights are tied; see `group_ties`.
        least_effective_groups: bound on exp of the entropy of the weights, as a part of the number of groups.
        ascent: how `self_supervised` and `aspect` climb; its own bound gives way to the one here.
    """

    level: Level = "layer"
    least_effective_groups: float = 0.5
    ascent: TopKSettings = field(default_factory=TopKSettings)

    @property
    def bounded_ascent(self) -> TopKSettings:
        """`ascent` with the bound of these settings."""
        return replace(self.ascent, least_effective_groups=self.least_effective_groups)


def fit_weighting(
    objective: Objective,
    plan: FeaturePlan,
    settings: FittingSettings | None = None,
    *,
    contributions: Contributions | None = None,
    effects: EffectSplit | None = None,
    aspect: Aspect | None = None,
) -> Weighting:
    """Group weights of mean 1 for the plan's groups, with the evidence for them; the same inputs give the same weights.

    `self_supervised` needs `contributions` of the queries it learns from; `aspect` needs these and `aspect`;
    `further_training` needs `effects`. What an objective does not need is ignored. Where nothing can be learned the
    weighting is uniform, and `fell_back_because` in its evidence says why. Whether weights help is for
    `chosen_or_uniform` to say, on queries they were not fitted on.

    Raises:
        UsageError: for an unknown objective or level, something that it needs and was not given, a bad bound, or too
            few queries.
        DataError: for contributions or effects that are not finite, or do not fit the plan.
    """
    chosen = settings or FittingSettings()
    if objective == "self_supervised":
        streamed = _given(contributions, objective, "contributions")
        values = partial(_values, streamed)
        return learn_top_k(values, plan, chosen.bounded_ascent, chosen.level)
    if objective == "aspect":
        return learn_aspect(
            _given(contributions, objective, "contributions"),
            plan,
            _given(aspect, objective, "aspect"),
            chosen.bounded_ascent,
            chosen.level,
        )
    if objective == "further_training":
        split = _given(effects, objective, "effects")
        return fit_effects(split, plan, chosen.level, chosen.least_effective_groups)
    raise UsageError(f"There is no objective {objective!r}.", f"Choose one of {', '.join(get_args(Objective))}.")


def self_supervised_choices(
    plan: FeaturePlan, settings: FittingSettings | None = None, *, contributions: Contributions
) -> list[Weighting]:
    """Weightings learned without labels, of different strengths; `best_or_uniform` chooses by measured effects.

    Where nothing can be learned it is the uniform one alone, and `fell_back_because` in its evidence says why.

    Raises:
        UsageError: for an unknown level, a bad bound, or too few queries.
        DataError: for contributions that are not finite, or do not fit the plan.
    """
    chosen = settings or FittingSettings()
    return top_k_choices(partial(_values, contributions), plan, chosen.bounded_ascent, chosen.level)


def _values(contributions: Contributions) -> Iterator[Tensor]:
    return (block.values for block in contributions())


def _given(value: Value | None, objective: str, name: str) -> Value:
    if value is None:
        raise UsageError(f"The objective {objective} needs {name}.", f"Pass {name} to fit_weighting.")
    return value
