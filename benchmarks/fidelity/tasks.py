"""What each task trains and how: adapter, recipe of training, recipe of further training, and how much is measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import cos, pi

import torch
from torch import nn

from fidelity import networks
from fidelity.data import Data, load_data, text_of
from gradtrail.attribution.adapters.base import ClassificationAdapter, ModelAdapter, RegressionAdapter
from gradtrail.attribution.adapters.causal_language_model import CausalLMAdapter
from gradtrail.attribution.fidelity.training_loop import Recipe
from gradtrail.nouns import Example


@dataclass(frozen=True)
class Fitting:
    """How the network is trained from scratch: AdamW, a rate that falls as a cosine to a tenth."""

    steps: int
    learning_rate: float
    weight_decay: float
    batch_size: int

    def rate(self, step: int) -> float:
        """The learning rate after so many steps."""
        return self.learning_rate * self._decay(step)

    @property
    def recipe(self) -> Recipe:
        """The same as a recipe of retraining."""

        def optimiser(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
            return torch.optim.AdamW(parameters, lr=self.learning_rate, weight_decay=self.weight_decay)

        def schedule(made: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
            return torch.optim.lr_scheduler.LambdaLR(made, self._decay)

        return Recipe(optimiser, (self.steps,), self.batch_size, schedule)

    def _decay(self, step: int) -> float:
        return 0.55 + 0.45 * cos(pi * step / self.steps)


@dataclass(frozen=True)
class Amounts:
    """How much is measured; every number is one of runs, sets or queries."""

    training: int
    queries: tuple[int, int, int]
    halves: int
    half_seeds: int
    singles: int
    single_seeds: int
    subsets: int
    subset_seeds: int


@dataclass(frozen=True)
class Task:
    """One task at one size."""

    name: str
    title: str
    fitting: Fitting
    steps: tuple[int, ...]
    rate: float
    batch_size: int
    amounts: Amounts
    toy: bool = False

    @cached_property
    def data(self) -> Data:
        """Training examples and queries."""
        length = 16 if self.toy else 48
        return load_data(self.name, self.amounts.training, self.amounts.queries, length)

    @cached_property
    def adapter(self) -> ModelAdapter:
        """How gradtrail runs the network."""
        kinds = {"diabetes": Regression, "language": Language}
        return kinds.get(self.name, Classification)(self)

    @property
    def recipe(self) -> Recipe:
        """Further training: plain stochastic gradient descent, as in the closed form that damping stands for."""

        def optimiser(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
            return torch.optim.SGD(parameters, lr=self.rate)

        return Recipe(optimiser, self.steps, self.batch_size)


class _OfTask:
    """The two methods every adapter needs, from a task."""

    def __init__(self, task: Task) -> None:
        self._task = task

    def build_model(self) -> nn.Module:
        """The architecture, with weights from torch's generator as it stands."""
        return networks.build(self._task.name, toy=self._task.toy)

    def training_data(self) -> Sequence[Example]:
        """The training examples."""
        return self._task.data.training


class Regression(_OfTask, RegressionAdapter):
    """Half the squared error."""


class Classification(_OfTask, ClassificationAdapter):
    """Cross entropy."""


class Language(_OfTask, CausalLMAdapter):
    """Cross entropy of every next token, summed over a window."""

    def decode(self, tokens: Sequence[int]) -> str:
        """The characters."""
        return text_of(tokens)


def tasks(*, toy: bool = False) -> dict[str, Task]:
    """The four tasks by name; toy ones end in seconds and measure next to nothing."""
    if toy:
        amounts = Amounts(24, (4, 4, 4), halves=4, half_seeds=2, singles=4, single_seeds=2, subsets=4, subset_seeds=2)
        short = Fitting(6, 1e-2, 1e-3, 8)
        known = [
            Task("diabetes", "tabular regression", short, (1, 3), 0.02, 8, amounts, toy=True),
            Task("cancer", "tabular classification", short, (1, 3), 0.05, 8, amounts, toy=True),
            Task("digits", "digits CNN", short, (1, 3), 0.05, 8, amounts, toy=True),
            Task("language", "language model", short, (1, 3), 0.001, 8, amounts, toy=True),
        ]
        return {task.name: task for task in known}
    known = [
        Task(
            "diabetes",
            "tabular regression (diabetes, MLP)",
            Fitting(500, 3e-3, 1e-2, 32),
            steps=(10, 30, 100, 300, 1000),
            rate=0.02,
            batch_size=32,
            amounts=Amounts(280, (40, 40, 80), 24, 4, 48, 4, 64, 8),
        ),
        Task(
            "cancer",
            "tabular classification (breast cancer, MLP)",
            Fitting(180, 2e-3, 1e-1, 32),
            steps=(10, 30, 100, 300, 1000),
            rate=0.05,
            batch_size=32,
            amounts=Amounts(360, (48, 48, 96), 24, 4, 48, 4, 64, 8),
        ),
        Task(
            "digits",
            "handwritten digits (CNN)",
            Fitting(600, 3e-3, 1e-2, 32),
            steps=(10, 30, 100, 300, 600),
            rate=0.01,
            batch_size=32,
            amounts=Amounts(500, (48, 48, 96), 24, 6, 40, 6, 64, 8),
        ),
        Task(
            "language",
            "language model (GPT-2 architecture, source code)",
            Fitting(240, 5e-3, 1e-2, 16),
            steps=(10, 30, 100, 200),
            rate=2e-4,
            batch_size=16,
            amounts=Amounts(384, (40, 40, 80), 16, 4, 24, 4, 64, 3),
        ),
    ]
    return {task.name: task for task in known}
