"""Retraining from scratch on subsets: the truth of linear datamodelling scores and of brittleness.

A seed gives a run its initial weights, its dropout and its order, the same for every subset. A left-out example is
skipped: the others of its batch share the step, so that a subset is trained in the order and for the number of steps
of all data. Far more expensive than further training, and it asks another question: what made the model what it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from gradtrail.attribution.adapters.base import ModelAdapter, TrainingData
from gradtrail.attribution.fidelity.effects import check_sets
from gradtrail.attribution.fidelity.further_training import check_seeds
from gradtrail.attribution.fidelity.resumable import Keep, Known, Request, keep_nothing, nothing_known, resumed_runs
from gradtrail.attribution.fidelity.training_loop import Recipe, RunCost, TrainingLoop
from gradtrail.attribution.yardsticks.lds import Retrained
from gradtrail.errors import UsageError
from gradtrail.nouns import Example, Target


@dataclass
class Retraining:
    """Trainings from scratch towards the same queries.

    `target` is what is measured of a query: None and "label" the training loss, "emitted" the adapter's own. With
    `mode` "train" the model learns with dropout and with the statistics of its batches; queries are always measured in
    eval mode. `initial` makes the untrained model; by default the adapter's `build_model`, under the seed of the run.
    """

    adapter: ModelAdapter
    training: TrainingData
    queries: Sequence[Example]
    recipe: Recipe
    target: Target | None = None
    device: str | torch.device = "cpu"
    mode: Literal["train", "eval"] = "train"
    initial: Callable[[], nn.Module] | None = None
    loop: TrainingLoop = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.loop = TrainingLoop(
            self.adapter, self.training, self.queries, self.recipe, self.target, self.device, "kept"
        )

    def run(self, seed: int, removed: Set[str] = frozenset()) -> NDArray[np.float64]:
        """Losses of the queries after each amount of training without `removed` (ids): (amounts, queries) float64.

        Raises:
            ModelError: when training diverges.
        """
        with self._begun(seed) as model:
            return self.loop.run(model, seed, removed)

    def trained(self, seed: int, removed: Set[str] = frozenset()) -> nn.Module:
        """The model after the longest training without `removed`, in eval mode."""
        with self._begun(seed) as model:
            self.loop.run(model, seed, removed, most_steps=self.recipe.steps[-1])
        return model.eval()

    def emitted(self, seed: int, removed: Set[str] = frozenset()) -> list[str]:
        """What the model trained without `removed` says for each query."""
        return self.loop.emitted(self.trained(seed, removed))

    def cost(self) -> RunCost:
        """Time a few steps and one measurement; nothing of it is kept."""
        with torch.random.fork_rng(devices=[]):
            return self.loop.cost(self._model)

    @contextmanager
    def _begun(self, seed: int) -> Iterator[nn.Module]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            yield self._model()

    def _model(self) -> nn.Module:
        model = (self.initial or self.adapter.build_model)()
        return model.to(self.device).train(self.mode == "train")


def retrain_on_subsets(
    retraining: Retraining,
    removed: Sequence[frozenset[str]],
    seeds: Sequence[int],
    *,
    known: Known = nothing_known,
    keep: Keep = keep_nothing,
) -> Retrained:
    """Losses of the queries under models retrained without each set.

    `keep` gets the losses of every finished run, and `known` may give them back, so that a killed measurement resumes.
    `retraining.cost().of(recipe, len(removed) * len(seeds))` says beforehand how many seconds it takes. Runs follow
    one another, because initial weights and dropout draw from torch's one generator.

    Raises:
        UsageError: for fewer than two sets or seeds, or a set that leaves nothing to train on.
        ModelError: when training diverges.
        DataError: when a known run has another shape.
    """
    check_sets(removed)
    check_seeds(seeds)
    ids = {retraining.training[place].example_id for place in range(len(retraining.training))}
    for number, without in enumerate(removed):
        if ids <= without:
            raise UsageError(f"Left-out set {number} leaves nothing to train on.", "Leave some examples in.")
    requests: list[Request] = [((seed, number), without) for seed in seeds for number, without in enumerate(removed)]
    amounts, queries = retraining.loop.shape
    by_seed = np.empty((len(seeds), amounts, len(removed), queries))
    for key, losses in resumed_runs(retraining.run, requests, retraining.loop.shape, known=known, keep=keep):
        by_seed[seeds.index(key[0]), :, key[1]] = losses
    return Retrained(
        removed=tuple(removed),
        query_ids=tuple(query.example_id for query in retraining.queries),
        steps=retraining.recipe.steps,
        by_seed=by_seed,
    )
