"""Plans of calibrations: how much further training fits a budget, pinned in a file so that a killed one resumes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.optim import Optimizer

from gradtrail.attribution.further_training import OptimiserFactory, Recipe, RunCost, RunKey
from gradtrail.digests import canonical_json, sha256_json
from gradtrail.errors import UsageError
from gradtrail.nouns import Target
from gradtrail.storage.atomic import replacing, write_atomically
from gradtrail.tasks.calibration_queries import QuerySource
from gradtrail.tasks.workspace import Workspace

FEWEST_SETS, ENOUGH_SETS, MOST_SETS = 8, 24, 64
FEWEST_SEEDS, MOST_SEEDS = 2, 8
TRAINING_SHARE = 0.85
"""The part of the budget that further training gets; the rest is for the methods."""


@dataclass(frozen=True)
class CalibrateOptions:
    """How fidelity is measured.

    Attributes:
        budget_seconds: time that the calibration may take; it decides how many sets, seeds and steps are trained.
        methods: methods to measure; empty means those that need no other index and no other pass over the model's data.
        target: what is measured of a query: what the model `emitted`, or the true `label`.
        steps: amounts of further training, ascending; the last one that fits the budget decides.
        optimiser: `sgd`, `adam` or `adamw`.
        learning_rate: of the further training.
        batch_size: examples a step.
        most_queries: queries drawn from what is there.
        seed: of everything that is drawn.
        device: where the model is trained.
    """

    budget_seconds: float = 300.0
    methods: tuple[str, ...] = ()
    target: Target = "emitted"
    steps: tuple[int, ...] = (10, 50, 200)
    optimiser: Literal["sgd", "adam", "adamw"] = "sgd"
    learning_rate: float = 0.02
    batch_size: int = 64
    most_queries: int = 64
    seed: int = 0
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.optimiser not in _OPTIMISERS or not 0 < self.learning_rate < float("inf"):
            raise UsageError(
                f"Further training with {self.optimiser} at a learning rate of {self.learning_rate}.",
                f"Choose one of {', '.join(_OPTIMISERS)} and a positive learning rate.",
            )

    @property
    def factory(self) -> OptimiserFactory:
        """Makes the optimiser."""
        made, rate = _OPTIMISERS[self.optimiser], self.learning_rate

        def make(parameters: list[nn.Parameter]) -> Optimizer:
            optimiser: Optimizer = made(parameters, lr=rate)
            return optimiser

        return make

    def recipe(self, steps: tuple[int, ...]) -> Recipe:
        """Further training for these amounts."""
        return Recipe(self.factory, steps, self.batch_size)


_OPTIMISERS: dict[str, Any] = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}


@dataclass(frozen=True)
class CalibrationPlan:
    """What a calibration will do, as plain values. `seconds` is the estimate for everything that it trains."""

    calibration_id: str
    model_version_id: str
    index_id: str
    query_source: QuerySource
    query_ids: tuple[str, ...]
    steps: tuple[int, ...]
    sets: int
    seeds: int
    threads: int
    seconds: float = field(compare=False)

    @property
    def runs(self) -> int:
        """Runs of further training: one a seed and set, and one a seed on all data."""
        return self.seeds * (self.sets + 1)


def fit_to_budget(seconds: float, cost: RunCost, options: CalibrateOptions) -> tuple[tuple[int, ...], int, int]:
    """Steps, sets and seeds that fit: enough sets to choose by come before longer training, then seeds lower the noise.

    Raises:
        UsageError: when not even the shortest training fits; it says what would.
    """
    least = FEWEST_SEEDS * (FEWEST_SETS + 1)
    enough = FEWEST_SEEDS * (ENOUGH_SETS + 1)
    for amounts in range(len(options.steps), 0, -1):
        steps = options.steps[:amounts]
        a_run = cost.of(options.recipe(steps))
        affordable = TRAINING_SHARE * seconds / a_run
        if affordable >= (least if amounts == 1 else enough):
            sets = int(min(ENOUGH_SETS, affordable / FEWEST_SEEDS - 1))
            seeds = int(min(MOST_SEEDS, affordable / (sets + 1)))
            return steps, int(min(MOST_SETS, affordable / seeds - 1)), seeds
    shortest = cost.of(options.recipe(options.steps[:1])) * least / TRAINING_SHARE
    raise UsageError(
        f"A budget of {seconds:.0f} s does not hold {least} runs of {options.steps[0]} steps, the least that says "
        "anything.",
        f"Give at least {shortest:.0f} s, or fewer steps.",
    )


class KeptRuns:
    """Finished runs of further training of one calibration, a small file each."""

    def __init__(self, workspace: Workspace, calibration_id: str) -> None:
        self._folder = workspace.root / "calibrations" / calibration_id

    def get(self, key: RunKey) -> NDArray[np.float64] | None:
        """The losses of a run, or None where it was not finished."""
        path = self._path(key)
        if not path.is_file():
            return None
        found: NDArray[np.float64] = np.load(path, allow_pickle=False)
        return found

    def put(self, key: RunKey, losses: NDArray[np.float64]) -> None:
        """Keep the losses of a finished run."""
        with replacing(self._path(key)) as temporary, temporary.open("wb") as stream:
            np.save(stream, losses, allow_pickle=False)

    def _path(self, key: RunKey) -> Path:
        seed, number = key
        return self._folder / f"seed-{seed}-{'all' if number is None else f'without-{number:03d}'}.npy"


def calibration_id(
    index_id: str, contents: Sequence[str], steps: Sequence[int], threads: int, options: CalibrateOptions
) -> str:
    """Digest of all that a run of further training depends on, but its seed and left-out set."""
    said = asdict(options) | {"index": index_id, "queries": list(contents), "steps": list(steps), "threads": threads}
    for other in ("budget_seconds", "methods", "most_queries"):
        del said[other]
    return sha256_json(said)


def kept_plan(workspace: Workspace, index_id: str, options: CalibrateOptions) -> CalibrationPlan | None:
    """The plan that an earlier call with these options made."""
    path = _plan_path(workspace, index_id, options)
    if not path.is_file():
        return None
    said: dict[str, Any] = json.loads(path.read_bytes())
    lists = {name: tuple(said[name]) for name in ("query_ids", "steps")}
    plan: CalibrationPlan = CalibrationPlan(**{**said, **lists})
    return plan


def keep_plan(workspace: Workspace, plan: CalibrationPlan, options: CalibrateOptions) -> None:
    """Pin the plan for calls with the same options."""
    write_atomically(_plan_path(workspace, plan.index_id, options), canonical_json(asdict(plan)))


def _plan_path(workspace: Workspace, index_id: str, options: CalibrateOptions) -> Path:
    said = asdict(options) | {"methods": [], "index": index_id}
    return workspace.root / "calibrations" / f"plan-{sha256_json(said)}.json"
