"""Further training: what leaving examples out really does to a model from here on (METHODS: the gold standard).

A final model is trained further on all data, and again without a set S of examples. The effect of S on a query is

    effect(q, S) = mean over seeds of ( loss of q without S − loss of q with all data )

after the same number of steps, with the same seed and order (arXiv 2412.03906). A left-out example stays in its batch
with a loss of zero, and the batch keeps its denominator, so that neither the weights of the others nor the number of
steps change. The model is trained in eval mode: with dropout off and statistics fixed, as its gradients were measured.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass, field
from functools import partial
from math import ceil
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import Optimizer

from gradtrail.attribution.adapters import Batch, ModelAdapter, TrainingData
from gradtrail.attribution.effects import EffectKind, Effects, check_sets
from gradtrail.errors import DataError, ModelError, UsageError
from gradtrail.nouns import Example, Target

OptimiserFactory: TypeAlias = Callable[[list[nn.Parameter]], Optimizer]
RunKey: TypeAlias = tuple[int, int | None]
"""Seed and number of the left-out set; None is further training on all data."""

_KEPT_BYTES = 1 << 28
_TIMED_STEPS = 5
_SLOW_SECONDS = 1.0


@dataclass(frozen=True)
class Recipe:
    """How a model is trained further.

    Attributes:
        optimiser: makes any torch optimiser for the parameters it is given.
        steps: amounts of further training at which queries are measured, all in one run.
        batch_size: examples a step.

    Raises:
        UsageError: for amounts that are not positive and ascending, or a batch size below 1.
    """

    optimiser: OptimiserFactory
    steps: tuple[int, ...] = (10, 50, 200)
    batch_size: int = 64

    def __post_init__(self) -> None:
        if not self.steps or self.steps[0] < 1 or list(self.steps) != sorted(set(self.steps)) or self.batch_size < 1:
            raise UsageError(
                f"Further training for {list(self.steps)} steps with batches of {self.batch_size}.",
                "Choose positive, ascending numbers of steps and a positive batch size.",
            )


@dataclass(frozen=True)
class RunCost:
    """Seconds, timed on this machine: to begin a run, for a step of training, for one measurement of all queries."""

    start: float
    step: float
    measurement: float

    def of(self, recipe: Recipe) -> float:
        """Seconds for one run of `recipe`."""
        return self.start + recipe.steps[-1] * self.step + len(recipe.steps) * self.measurement


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
    _batches: dict[tuple[int, int], tuple[list[str], Batch]] = field(default_factory=dict, init=False, repr=False)
    _kept_bytes: int = field(default=0, init=False, repr=False)

    def __post_init__(self) -> None:
        if not self.queries:
            raise UsageError("Further training without a query has nothing to measure.", "Give at least one query.")
        if len(self.training) == 0:
            raise DataError("Further training without a training example.", "Give at least one training example.")
        if not any(parameter.requires_grad for parameter in self.model.parameters()):
            raise ModelError("No parameter of the model can be trained further.", "Set requires_grad where it learns.")

    def run(self, seed: int, left_out: Set[str] = frozenset(), *, most_steps: int | None = None) -> NDArray[np.float64]:
        """Losses of the queries after each amount of training without `left_out` (ids): (amounts, queries) float64.

        Raises:
            ModelError: when training diverges.
        """
        model = copy.deepcopy(self.model).to(self.device).eval()
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimiser = self.recipe.optimiser(trained)
        last = self.recipe.steps[-1] if most_steps is None else most_steps
        found = []
        with torch.inference_mode(False), torch.enable_grad():
            for step, (ids, batch) in enumerate(self._order(seed, last), start=1):
                kept = torch.tensor([example_id not in left_out for example_id in ids], device=self.device)
                optimiser.step(partial(self._objective, model, optimiser, batch, kept))
                if most_steps is None and step in self.recipe.steps:
                    found.append(self._measure(model, seed, step))
        return np.stack(found) if found else np.empty((0, len(self.queries)))

    def cost(self) -> RunCost:
        """Time a few steps and one measurement; nothing of it is kept."""
        self.run(0, most_steps=1)  # the first run also pays for what torch imports and sets up
        start = self._seconds(lambda: self.run(0, most_steps=0))
        first = self._seconds(lambda: self.run(0, most_steps=1))
        count = 1 if first > _SLOW_SECONDS else _TIMED_STEPS
        timed = first if count == 1 else self._seconds(lambda: self.run(0, most_steps=count))
        measurement = self._seconds(lambda: self._measure(self.model, 0, 0))
        return RunCost(start, max(0.0, timed - start) / count, measurement)

    def _objective(self, model: nn.Module, optimiser: Optimizer, batch: Batch, kept: Tensor) -> float:
        """Sum of the kept losses over the batch's own size, with gradients in place."""
        optimiser.zero_grad(set_to_none=False)
        losses = self.adapter.losses(self.adapter.outputs(model, batch), batch)
        objective = torch.where(kept, losses, torch.zeros_like(losses)).sum() / len(kept)
        torch.autograd.backward(objective)
        return objective.item()

    def _measure(self, model: nn.Module, seed: int, step: int) -> NDArray[np.float64]:
        measure = self.adapter.emitted_losses if self.target == "emitted" else self.adapter.losses
        pieces = []
        with torch.no_grad():
            for start in range(0, len(self.queries), self.recipe.batch_size):
                piece = self.queries[start : start + self.recipe.batch_size]
                batch = self.adapter.collate(piece).to(self.device)
                pieces.append(measure(self.adapter.outputs(model, batch), batch).double().cpu())
        losses = torch.cat(pieces)
        if not torch.isfinite(losses).all():
            raise ModelError(
                f"Further training diverged: after {step} steps with seed {seed} the loss of query "
                f"{self.queries[int(torch.nonzero(~torch.isfinite(losses))[0])].example_id} is not finite.",
                "Choose a smaller learning rate or fewer steps.",
            )
        found: NDArray[np.float64] = losses.numpy()
        return found

    def _order(self, seed: int, steps: int) -> Iterator[tuple[list[str], Batch]]:
        """The batches of one seed, the same for every left-out set: shuffled anew in every epoch."""
        count, size = len(self.training), self.recipe.batch_size
        generator = torch.Generator().manual_seed(seed)
        places: list[Tensor] = []
        for step in range(steps):
            if not places:
                places = list(torch.split(torch.randperm(count, generator=generator), size))
            yield self._batch((seed, step), places.pop(0).tolist())

    def _batch(self, key: tuple[int, int], positions: list[int]) -> tuple[list[str], Batch]:
        """Collated once for all runs of a seed, as far as memory goes."""
        if key in self._batches:
            return self._batches[key]
        if self._batches and next(iter(self._batches))[0] != key[0]:
            self._batches.clear()
            self._kept_bytes = 0
        examples = [self.training[position] for position in positions]
        batch = self.adapter.collate(examples).to(self.device)
        found = ([example.example_id for example in examples], batch)
        size = _bytes(batch)
        if self._kept_bytes + size <= _KEPT_BYTES:
            self._batches[key] = found
            self._kept_bytes += size
        return found

    @staticmethod
    def _seconds(action: Callable[[], object]) -> float:
        started = time.perf_counter()
        action()
        return time.perf_counter() - started


def random_halves(example_ids: Sequence[str], count: int, seed: int = 0) -> list[frozenset[str]]:
    """`count` random halves to leave out; the first ones are the same however many are asked for.

    Raises:
        UsageError: for fewer than two examples.
    """
    if len(example_ids) < 2:  # noqa: PLR2004 (half of one)
        raise UsageError(f"{len(example_ids)} examples have no halves.", "Give at least two.")
    ids = np.asarray(example_ids, dtype=object)
    size = ceil(len(ids) / 2)
    return [
        frozenset(np.random.default_rng([seed, number]).choice(ids, size=size, replace=False))
        for number in range(count)
    ]


def single_examples(example_ids: Sequence[str], count: int | None = None, seed: int = 0) -> list[frozenset[str]]:
    """Sets of one example each, to leave out: all, or `count` drawn at random."""
    if count is None or count >= len(example_ids):
        return [frozenset([example_id]) for example_id in example_ids]
    order = np.random.default_rng(seed).permutation(len(example_ids))[:count]
    return [frozenset([example_ids[position]]) for position in order.tolist()]


def measure_effects(
    training: FurtherTraining,
    left_out: Sequence[frozenset[str]],
    seeds: Sequence[int],
    *,
    kind: EffectKind,
    known: Callable[[RunKey], NDArray[np.float64] | None] = lambda _: None,
    keep: Callable[[RunKey, NDArray[np.float64]], None] = lambda _, __: None,
) -> Effects:
    """Effects of leaving each set out, by amount of training.

    `keep` gets the losses of every finished run, and `known` may give them back, so that a killed measurement resumes.

    Raises:
        UsageError: for fewer than two sets or seeds, or sets that do not fit `kind`.
        ModelError: when training diverges.
        DataError: when a known run has another shape.
    """
    check_sets(left_out, kind)
    if len(set(seeds)) != len(seeds) or len(seeds) < 2:  # noqa: PLR2004 (the ceiling splits the seeds in half)
        raise UsageError(f"Seeds {list(seeds)}.", "Give at least two different seeds: their agreement is the ceiling.")
    shape = (len(training.recipe.steps), len(training.queries))
    by_seed = np.empty((len(seeds), shape[0], len(left_out), shape[1]))

    def losses(key: RunKey, without: frozenset[str]) -> NDArray[np.float64]:
        found = known(key)
        if found is None:
            found = training.run(key[0], without)
            keep(key, found)
        if found.shape != shape:
            raise DataError(
                f"A kept run of further training has shape {found.shape}, where {shape} is expected.",
                "Remove the kept runs and measure again.",
            )
        return found

    for place, seed in enumerate(seeds):
        full = losses((seed, None), frozenset())
        for number, without in enumerate(left_out):
            by_seed[place, :, number] = losses((seed, number), without) - full
    return Effects(
        kind=kind,
        left_out=tuple(left_out),
        query_ids=tuple(query.example_id for query in training.queries),
        steps=training.recipe.steps,
        by_seed=by_seed,
    )


def _bytes(batch: Batch) -> int:
    total = 0

    def count(tensor: Tensor) -> Tensor:
        nonlocal total
        total += tensor.nbytes
        return tensor

    batch.with_each(count)
    return total
