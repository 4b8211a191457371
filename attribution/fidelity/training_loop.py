"""One run of training towards queries: its recipe, the order of its batches, what is left out, what is measured.

Further training and retraining share this loop. A seed gives the order of all examples; leaving some out changes
neither the order nor the number of steps.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass, field
from functools import partial
from threading import Lock
from typing import Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from gradtrail.attribution.adapters.base import Batch, ModelAdapter, TrainingData, measured_outputs
from gradtrail.attribution.adapters.layout import BatchLayout
from gradtrail.errors import DataError, DivergenceError, ModelError, UsageError
from gradtrail.nouns import Example, Target

OptimiserFactory: TypeAlias = Callable[[list[nn.Parameter]], Optimizer]
ScheduleFactory: TypeAlias = Callable[[Optimizer], LRScheduler]
Denominator: TypeAlias = Literal["nominal", "kept"]

_KEPT_BYTES = 1 << 28
_TIMED_STEPS = 5
_SLOW_SECONDS = 1.0


@dataclass(frozen=True)
class Recipe:
    """How a model is trained.

    Attributes:
        optimiser: makes any torch optimiser for the parameters it is given.
        steps: amounts of training at which queries are measured, all in one run.
        batch_size: examples a step.
        schedule: makes a learning rate schedule for the optimiser, advanced after every step.

    Raises:
        UsageError: for amounts that are not positive and ascending, or a batch size below 1.
    """

    optimiser: OptimiserFactory
    steps: tuple[int, ...] = (10, 50, 200)
    batch_size: int = 64
    schedule: ScheduleFactory | None = None

    def __post_init__(self) -> None:
        if not self.steps or self.steps[0] < 1 or list(self.steps) != sorted(set(self.steps)) or self.batch_size < 1:
            raise UsageError(
                f"Training for {list(self.steps)} steps with batches of {self.batch_size}.",
                "Choose positive, ascending numbers of steps and a positive batch size.",
            )


@dataclass(frozen=True)
class RunCost:
    """Seconds, timed on this machine: to begin a run, for a step of training, for one measurement of all queries."""

    start: float
    step: float
    measurement: float

    def of(self, recipe: Recipe, runs: int = 1) -> float:
        """Seconds for so many runs of `recipe`, one after the other."""
        return runs * (self.start + recipe.steps[-1] * self.step + len(recipe.steps) * self.measurement)


@dataclass
class TrainingLoop:
    """Trains models on the same data towards the same queries.

    `target` is what is measured of a query: None and "label" the training loss, "emitted" the adapter's own.
    `denominator` says what a left-out example does to its batch. With "nominal" its loss is zeroed and the batch keeps
    its size, so that the weights of the others do not change. With "kept" it is skipped: the others share the batch.
    """

    adapter: ModelAdapter
    training: TrainingData
    queries: Sequence[Example]
    recipe: Recipe
    target: Target | None
    device: str | torch.device
    denominator: Denominator
    _batches: dict[tuple[int, int], tuple[list[str], Batch]] = field(default_factory=dict, init=False, repr=False)
    _layout: list[BatchLayout | None] = field(default_factory=list, init=False, repr=False)
    _kept_bytes: int = field(default=0, init=False, repr=False)
    _lock: Lock = field(default_factory=Lock, init=False, repr=False)

    def __post_init__(self) -> None:
        if not self.queries:
            raise UsageError("Training without a query has nothing to measure.", "Give at least one query.")
        if len(self.training) == 0:
            raise DataError("Training without a training example.", "Give at least one training example.")

    @property
    def shape(self) -> tuple[int, int]:
        """Of the losses of one run: (amounts, queries)."""
        return len(self.recipe.steps), len(self.queries)

    def run(
        self, model: nn.Module, seed: int, removed: Set[str] = frozenset(), *, most_steps: int | None = None
    ) -> NDArray[np.float64]:
        """Train `model` in place, without `removed` (ids); losses of the queries by amount: (amounts, queries).

        Raises:
            DivergenceError: when training diverges.
        """
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        if not trained:
            raise ModelError("No parameter of the model can be trained.", "Set requires_grad where it learns.")
        optimiser = self.recipe.optimiser(trained)
        schedule = None if self.recipe.schedule is None else self.recipe.schedule(optimiser)
        last = self.recipe.steps[-1] if most_steps is None else most_steps
        found = []
        with torch.inference_mode(False), torch.enable_grad():
            for step, (ids, batch) in enumerate(self._order(seed, last), start=1):
                self._step(model, optimiser, ids, batch, removed, f"at step {step} with seed {seed}")
                if schedule is not None:
                    schedule.step()
                if most_steps is None and step in self.recipe.steps:
                    found.append(self.query_losses(model, f"after {step} steps with seed {seed}"))
        return np.stack(found) if found else np.empty((0, len(self.queries)))

    def query_losses(self, model: nn.Module, when: str) -> NDArray[np.float64]:
        """Losses of the queries, in eval mode: (queries,).

        Raises:
            DivergenceError: naming `when` and the query, for a loss that is not finite.
        """
        measure = self.adapter.emitted_losses if self.target == "emitted" else self.adapter.losses
        # To the CPU first: not every device has doubles.
        losses = torch.cat(
            [measure(outputs, batch).cpu().double() for outputs, batch in self._outputs(model, self.queries)]
        )
        if not torch.isfinite(losses).all():
            raise _diverged(f"{when} the loss of query {self.queries[_first_fault(losses)].example_id} is not finite")
        found: NDArray[np.float64] = losses.numpy()
        return found

    def emitted(self, model: nn.Module) -> list[str]:
        """What the model says for each query, in eval mode."""
        said: list[str] = []
        for outputs, batch in self._outputs(model, self.queries):
            said += self.adapter.emitted(outputs, batch)
        return said

    def mean_training_loss(self, model: nn.Module, places: Sequence[int] | None = None) -> float:
        """Mean loss of the training examples at some places, or of all; in eval mode, not finite where it diverged."""
        chosen = _Window(self.training, range(len(self.training)) if places is None else places)
        total = 0.0
        for outputs, batch in self._outputs(model, chosen):
            total += self.adapter.losses(outputs, batch).double().sum().item()
        return total / len(chosen)

    def cost(self, begin: Callable[[], nn.Module], seed: int = 0) -> RunCost:
        """Time a few steps and one measurement of models that `begin` makes; nothing of it is kept.

        No more steps than the shortest amount of the recipe: what is timed is what will be trained.
        """
        self.run(begin(), seed, most_steps=1)  # the first run also pays for what torch imports and sets up
        start = _seconds(lambda: self.run(begin(), seed, most_steps=0))
        first = _seconds(lambda: self.run(begin(), seed, most_steps=1))
        count = 1 if first > _SLOW_SECONDS else min(_TIMED_STEPS, self.recipe.steps[0])
        timed = first if count == 1 else _seconds(lambda: self.run(begin(), seed, most_steps=count))
        model = begin()
        measurement = _seconds(lambda: self.query_losses(model, "before any training"))
        return RunCost(start, max(0.0, timed - start) / count, measurement)

    def _step(
        self, model: nn.Module, optimiser: Optimizer, ids: list[str], batch: Batch, removed: Set[str], when: str
    ) -> None:
        places = [place for place, example_id in enumerate(ids) if example_id not in removed]
        if self.denominator == "nominal":
            kept = torch.zeros(len(ids), dtype=torch.bool)
            kept[places] = True
            optimiser.step(partial(self._objective, model, optimiser, batch, kept.to(self.device), when))
        elif places:
            batch = batch if len(places) == len(ids) else self._rows(batch, places, len(ids))
            kept = torch.ones(len(places), dtype=torch.bool, device=self.device)
            optimiser.step(partial(self._objective, model, optimiser, batch, kept, when))

    def _rows(self, batch: Batch, places: list[int], size: int) -> Batch:
        """The examples of a batch at some places.

        Raises:
            ModelError: when examples do not lie side by side in the batch.
        """
        with self._lock:
            if not self._layout:
                self._layout.append(BatchLayout.of(self.adapter, self.training[0]))
        (layout,) = self._layout
        if layout is None or not layout.fits(batch, size):
            shapes = ", ".join(str(tuple(tensor.shape)) for tensor in batch.tensors())
            raise ModelError(
                f"The tensors of a batch of {size} examples, of shapes {shapes}, have no row for each.",
                "Let the adapter's collate return tensors in which each example has a row, or which all share.",
            )
        return layout.rows(batch, torch.tensor(places))

    def _objective(self, model: nn.Module, optimiser: Optimizer, batch: Batch, kept: Tensor, when: str) -> float:
        """Sum of the kept losses over the batch's size, with gradients in place."""
        optimiser.zero_grad(set_to_none=False)
        losses = self.adapter.losses(measured_outputs(self.adapter, model, batch), batch)
        objective = torch.where(kept, losses, torch.zeros_like(losses)).sum() / len(kept)
        torch.autograd.backward(objective)
        found = objective.item()
        if not np.isfinite(found):
            raise _diverged(f"{when} the training loss is not finite")
        return found

    def _outputs(self, model: nn.Module, examples: Sequence[Example] | _Window) -> Iterator[tuple[Tensor, Batch]]:
        modes = [(module, module.training) for module in model.modules()]
        model.eval()
        try:
            with torch.no_grad():
                for start in range(0, len(examples), self.recipe.batch_size):
                    batch = self.adapter.collate(examples[start : start + self.recipe.batch_size]).to(self.device)
                    yield measured_outputs(self.adapter, model, batch), batch
        finally:
            for module, training in modes:
                module.training = training

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
        with self._lock:
            if key in self._batches:
                return self._batches[key]
            if self._batches and next(iter(self._batches))[0] != key[0]:
                self._batches.clear()
                self._kept_bytes = 0
            examples = [self.training[position] for position in positions]
            batch = self.adapter.collate(examples).to(self.device)
            found = ([example.example_id for example in examples], batch)
            size = sum(tensor.nbytes for tensor in batch.tensors())
            if self._kept_bytes + size <= _KEPT_BYTES:
                self._batches[key] = found
                self._kept_bytes += size
            return found


@dataclass(frozen=True)
class _Window:
    """Slices of some places of a map-style data set."""

    training: TrainingData
    places: Sequence[int]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, chosen: slice) -> list[Example]:
        return [self.training[place] for place in self.places[chosen]]


def _diverged(what: str) -> DivergenceError:
    return DivergenceError(f"Training diverged: {what}.", "Choose a smaller learning rate or fewer steps.")


def _first_fault(losses: Tensor) -> int:
    return int(torch.nonzero(~torch.isfinite(losses))[0])


def _seconds(action: Callable[[], object]) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started
