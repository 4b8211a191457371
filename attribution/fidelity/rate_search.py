"""A search for the learning rate of further training: the largest of a ladder at which the training loss falls.

It counts steps and times nothing, so that the same request finds the same rate everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from gradtrail.attribution.fidelity.further_training import FurtherTraining
from gradtrail.errors import DivergenceError, ModelError

RUNG = 4.0
"""Each rate of the ladder is so many times the one below it."""
MOST_UP, MOST_DOWN = 2, 8
_SAMPLED_EXAMPLES = 512


@dataclass(frozen=True)
class TriedRate:
    """A learning rate, and the mean training loss after training with it; None where that is not finite."""

    learning_rate: float
    loss_after: float | None


@dataclass(frozen=True)
class RateSearch:
    """What a search tried.

    Attributes:
        steps: of training at each rate: the shortest amount of the recipe.
        examples: training examples, drawn at random, that the loss is a mean of.
        loss_before: their mean loss before any training.
        tried: the rates in the order in which they were tried.
    """

    steps: int
    examples: int
    loss_before: float
    tried: tuple[TriedRate, ...]

    @property
    def falling(self) -> tuple[float, ...]:
        """Rates at which the loss falls, the largest first."""
        found = (
            each.learning_rate
            for each in self.tried
            if each.loss_after is not None and each.loss_after < self.loss_before
        )
        return tuple(sorted(found, reverse=True))

    @property
    def usable(self) -> tuple[float, ...]:
        """The same; where it falls at none, as at a minimum, the rates at which it is finite, the least loss first."""
        finite = [(each.loss_after, each.learning_rate) for each in self.tried if each.loss_after is not None]
        return self.falling or tuple(rate for _, rate in sorted(finite))


def search_rate(
    training_at: Callable[[float], FurtherTraining], start: float, *, seed: int = 0, most_up: int = MOST_UP
) -> RateSearch:
    """Train at the rate `start`, then up the ladder while the loss falls; or down it until it does.

    `training_at` makes the further training at one rate. The order of the examples is that of `seed`.

    Raises:
        ModelError: when the loss is not finite before any training.
    """
    first = training_at(start)
    steps, count = first.recipe.steps[0], len(first.training)
    places = sorted(np.random.default_rng(seed).permutation(count)[:_SAMPLED_EXAMPLES].tolist())
    before = first.loop.mean_training_loss(first.begin(), places)
    if not np.isfinite(before):
        raise ModelError("The mean training loss is not finite before any further training.", "Check model and data.")

    def falls(rate: float) -> bool:
        training = first if rate == start else training_at(rate)
        tried.append(TriedRate(rate, _loss_after(training, places, steps, seed)))
        after = tried[-1].loss_after
        return after is not None and after < before

    tried: list[TriedRate] = []
    if falls(start):
        _any_until(falls, [start * RUNG**up for up in range(1, most_up + 1)], wanted=False)
    else:
        _any_until(falls, [start / RUNG**down for down in range(1, MOST_DOWN + 1)], wanted=True)
    return RateSearch(steps, len(places), before, tuple(tried))


def _any_until(falls: Callable[[float], bool], rates: Sequence[float], *, wanted: bool) -> None:
    """Try rates in order, until one does what is wanted."""
    any(falls(rate) is wanted for rate in rates)


def _loss_after(training: FurtherTraining, places: Sequence[int], steps: int, seed: int) -> float | None:
    model = training.begin()
    try:
        training.loop.run(model, seed, most_steps=steps)
    except DivergenceError:
        return None
    found = training.loop.mean_training_loss(model, places)
    return found if np.isfinite(found) else None
