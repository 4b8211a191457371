"""Further training: what leaving examples out really does to a model from here on (METHODS: the gold standard).

A final model is trained further on all data, and again without a set S of examples. The effect of S on a query is

    effect(q, S) = mean over seeds of ( loss of q without S − loss of q with all data )

after the same number of steps, with the same seed and order (arXiv 2412.03906). A left-out example stays in its batch
with a loss of zero, and the batch keeps its denominator, so that neither the weights of the others nor the number of
steps change. The model is trained in eval mode: with dropout off and statistics fixed, as its gradients were measured.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence, Set
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from gradtrail.attribution.adapters.base import ModelAdapter, TrainingData
from gradtrail.attribution.fidelity.effects import EffectKind, Effects, check_sets
from gradtrail.attribution.fidelity.removed_sets import random_halves, single_examples
from gradtrail.attribution.fidelity.resumable import (
    Keep,
    Known,
    Request,
    RunKey,
    keep_nothing,
    nothing_known,
    resumed_runs,
)
from gradtrail.attribution.fidelity.training_loop import OptimiserFactory, Recipe, RunCost, TrainingLoop
from gradtrail.errors import ModelError, UsageError
from gradtrail.nouns import Example, Target

__all__ = [
    "FurtherTraining",
    "OptimiserFactory",
    "Recipe",
    "RunCost",
    "RunKey",
    "measure_effects",
    "random_halves",
    "single_examples",
]


@dataclass
class FurtherTraining:
    """Runs of further training of one model towards the same queries; the model itself is never changed.

    `target` is what is measured of a query: None and "label" the training loss, "emitted" the adapter's own.
    """

    adapter: ModelAdapter
    model: nn.Module
    training: TrainingData
    queries: Sequence[Example]
    recipe: Recipe
    target: Target | None = None
    device: str | torch.device = "cpu"
    loop: TrainingLoop = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.loop = TrainingLoop(
            self.adapter, self.training, self.queries, self.recipe, self.target, self.device, "nominal"
        )
        if not any(parameter.requires_grad for parameter in self.model.parameters()):
            raise ModelError("No parameter of the model can be trained further.", "Set requires_grad where it learns.")

    def run(self, seed: int, removed: Set[str] = frozenset()) -> NDArray[np.float64]:
        """Losses of the queries after each amount of training without `removed` (ids): (amounts, queries) float64.

        Raises:
            ModelError: when training diverges.
        """
        return self.loop.run(self.begin(), seed, removed)

    def begin(self) -> nn.Module:
        """A copy of the model, in eval mode, as every run starts."""
        return copy.deepcopy(self.model).to(self.device).eval()

    def cost(self, seed: int = 0) -> RunCost:
        """Time a few steps and one measurement; nothing of it is kept."""
        return self.loop.cost(self.begin, seed)


def measure_effects(
    training: FurtherTraining,
    removed: Sequence[frozenset[str]],
    seeds: Sequence[int],
    *,
    kind: EffectKind,
    known: Known = nothing_known,
    keep: Keep = keep_nothing,
    workers: int = 1,
) -> Effects:
    """Effects of leaving each set out, by amount of training.

    `keep` gets the losses of every finished run, and `known` may give them back, so that a killed measurement resumes.
    `workers` train at once (`resumed_runs`).

    Raises:
        UsageError: for fewer than two sets or seeds, or sets that do not fit `kind`.
        ModelError: when training diverges.
        DataError: when a known run has another shape.
    """
    check_sets(removed, kind)
    check_seeds(seeds)
    amounts, queries = training.loop.shape
    by_seed = np.empty((len(seeds), amounts, len(removed), queries))
    full: dict[int, NDArray[np.float64]] = {}
    requests: list[Request] = []
    for seed in seeds:
        requests.append(((seed, None), frozenset()))
        requests += [((seed, number), without) for number, without in enumerate(removed)]
    runs = resumed_runs(training.run, requests, training.loop.shape, known=known, keep=keep, workers=workers)
    for (seed, number), losses in runs:
        if number is None:
            full[seed] = losses
        else:
            by_seed[seeds.index(seed), :, number] = losses - full[seed]
    return Effects(
        kind=kind,
        removed=tuple(removed),
        query_ids=tuple(query.example_id for query in training.queries),
        steps=training.recipe.steps,
        by_seed=by_seed,
    )


def check_seeds(seeds: Sequence[int]) -> None:
    """Refuse seeds that leave no ceiling.

    Raises:
        UsageError: for fewer than two different seeds.
    """
    if len(set(seeds)) != len(seeds) or len(seeds) < 2:  # noqa: PLR2004 (the ceiling splits the seeds in half)
        raise UsageError(f"Seeds {list(seeds)}.", "Give at least two different seeds: their agreement is the ceiling.")
