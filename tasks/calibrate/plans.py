"""Plans of calibrations: how much further training fits a budget, pinned in a file so that a killed one resumes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from math import comb
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import nn
from torch.optim import Optimizer

from gradtrail.attribution.fidelity.further_training import OptimiserFactory, Recipe, RunCost
from gradtrail.attribution.weighting.levels import Level
from gradtrail.digests import canonical_json, sha256_json
from gradtrail.errors import UsageError
from gradtrail.nouns import Target
from gradtrail.storage.files.atomic import write_atomically
from gradtrail.tasks.calibrate.logged_training import OPTIMISERS, Optimiser
from gradtrail.tasks.calibrate.queries import QuerySource, query_roles
from gradtrail.tasks.core.measured_fidelity import Question
from gradtrail.tasks.core.watched import WatchedModel
from gradtrail.tasks.core.workspace import Workspace

FEWEST_SETS, ENOUGH_SETS, MOST_SETS = 8, 24, 64
FEWEST_SEEDS, MOST_SEEDS = 2, 8
FEWEST_SINGLE_EXAMPLES = 8
FEWEST_EXAMPLES = 5
"""Of which there are as many different halves as a calibration needs."""
DEFAULT_BATCH_SIZE = 64
TRAINING_SHARE = 0.85
"""The part of the budget that further training gets; the rest is for the methods."""
SHARE_OF_SINGLE_EXAMPLES = 0.5
"""The part of that which leaving single examples out gets, where it is asked for."""
COUNTED_THREADS = 1
"""Threads of training where sets and seeds are given: timing nothing, the same request does the same everywhere."""


LearnedObjective = Literal["self_supervised", "further_training"]
LEARNED_OBJECTIVES: tuple[LearnedObjective, ...] = get_args(LearnedObjective)


@dataclass(frozen=True)
class CalibrateOptions:
    """How fidelity is measured.

    Attributes:
        budget_seconds: time that the calibration may take; it decides how many sets, seeds and steps are trained.
        sets: random halves to leave out; given together with `seeds`, they replace the budget, and all steps are
            trained.
        seeds: orders of the training examples to average over; 0 sets and seeds leave both to the budget.
        leave_one_out: single examples to leave out for `fidelity_loo`, a figure of its own; 0 measures none.
        index: beginning of the id of the index to calibrate; empty takes the newest of the serving checkpoint.
        weightings: objectives that group weights are learned for, beside the uniform weighting.
        level: of the groups that have a weight of their own.
        aspects: attributes of training examples, each of which gets a weighting of its own.
        every_checkpoint: measure methods that add up over checkpoints on all of them too, beside the serving one.
        methods: methods to measure; empty means those that need no other index and no other pass over the model's data.
        target: what is measured of a query: what the model `emitted`, or the true `label`.
        steps: amounts of further training, ascending; the last one that fits the budget decides.
        optimiser: `sgd`, `adam` or `adamw`; None takes what the training run logged, else `sgd`.
        learning_rate: of the further training; None takes what the run logged for that optimiser, or searches for one.
        batch_size: examples a step, at most those of the training data; None takes 64, or all where there are fewer.
        most_queries: queries drawn from what is there.
        seed: of everything that is drawn.
        device: where the model is trained.
    """

    budget_seconds: float = 300.0
    methods: tuple[str, ...] = ()
    target: Target = "emitted"
    steps: tuple[int, ...] = (10, 50, 200)
    optimiser: Optimiser | None = None
    learning_rate: float | None = None
    batch_size: int | None = None
    most_queries: int = 64
    seed: int = 0
    device: str = "cpu"
    sets: int = 0
    seeds: int = 0
    leave_one_out: int = 0
    index: str = ""
    weightings: tuple[LearnedObjective, ...] = LEARNED_OBJECTIVES
    level: Level = "layer"
    aspects: tuple[str, ...] = ()
    every_checkpoint: bool = False

    def __post_init__(self) -> None:
        counted = bool(self.sets or self.seeds)
        if counted and (self.sets < FEWEST_SETS or self.seeds < FEWEST_SEEDS):
            raise UsageError(
                f"{self.sets} random halves left out with {self.seeds} seeds say too little.",
                f"Give at least {FEWEST_SETS} halves and {FEWEST_SEEDS} seeds, or a budget instead of both.",
            )
        if self.leave_one_out and self.leave_one_out < FEWEST_SINGLE_EXAMPLES:
            raise UsageError(
                f"{self.leave_one_out} single examples are too few to rank.",
                f"Leave out at least {FEWEST_SINGLE_EXAMPLES}, or none.",
            )
        refuse_unusable_training(self.optimiser, self.learning_rate, self.batch_size, self.steps)
        if self.seed < 0 or not self.budget_seconds > 0:
            raise UsageError(
                f"A seed of {self.seed} and a budget of {self.budget_seconds} s.",
                "Give a seed of 0 or more, and a budget of more than nothing.",
            )
        query_roles(self.most_queries, (), self.seed)

    @property
    def training_threads(self) -> tuple[int, ...]:
        """The numbers of threads to choose from: one where nothing is timed, so that it is the same everywhere."""
        return (COUNTED_THREADS,) if self.sets else (1, torch.get_num_threads())

    def with_batches(self, examples: int) -> CalibrateOptions:
        """The same with a batch size, for so many training examples."""
        return replace(self, batch_size=self.batch_size or min(DEFAULT_BATCH_SIZE, examples))

    def as_before(self) -> CalibrateOptions:
        """The same with what was the default before rates were searched for: SGD at 0.02, batches of 64."""
        return replace(
            self,
            optimiser=self.optimiser or "sgd",
            learning_rate=self.learning_rate or 0.02,
            batch_size=self.batch_size or DEFAULT_BATCH_SIZE,
        )

    @property
    def factory(self) -> OptimiserFactory:
        """Makes the optimiser."""
        made, rate = _OPTIMISERS[self.optimiser or "sgd"], self.learning_rate

        def make(parameters: list[nn.Parameter]) -> Optimizer:
            optimiser: Optimizer = made(parameters, lr=rate)
            return optimiser

        return make

    def recipe(self, steps: tuple[int, ...]) -> Recipe:
        """Further training for these amounts."""
        return Recipe(self.factory, steps, self.batch_size or DEFAULT_BATCH_SIZE)


def refuse_unusable_training(
    optimiser: str | None, learning_rate: float | None, batch_size: int | None, steps: Sequence[int]
) -> None:
    """Refuse what no training can be done with; None leaves a choice open.

    Raises:
        UsageError: naming it.
    """
    if optimiser not in (None, *OPTIMISERS) or not (learning_rate is None or 0 < learning_rate < float("inf")):
        raise UsageError(
            f"Further training with {optimiser} at a learning rate of {learning_rate}.",
            f"Choose one of {', '.join(OPTIMISERS)} and a positive learning rate.",
        )
    if not steps or steps[0] < 1 or list(steps) != sorted(set(steps)) or (batch_size is not None and batch_size < 1):
        raise UsageError(
            f"Further training for {list(steps)} steps with batches of {batch_size or DEFAULT_BATCH_SIZE}.",
            "Choose positive, ascending numbers of steps and a positive batch size.",
        )


def refuse_sizes_beyond(examples: int, options: CalibrateOptions) -> None:
    """Refuse what so many training examples do not hold.

    Raises:
        UsageError: for a larger batch, more single examples to leave out, or more halves than there are.
    """
    fault = ""
    if (options.batch_size or 0) > examples:
        fault, remedy = f"A batch of {options.batch_size} examples", f"a batch size of {examples} at most"
    elif options.leave_one_out > examples:
        fault, remedy = f"{options.leave_one_out} single examples to leave out", f"{examples} at most"
    elif examples < FEWEST_EXAMPLES or options.sets > comb(examples, (examples + 1) // 2):
        fault = f"{options.sets or FEWEST_SETS} different halves to leave out"
        remedy = "fewer halves, or calibrate a model with more data"
    if fault:
        raise UsageError(
            f"{fault}: the index has {examples} training {'example' if examples == 1 else 'examples'}.",
            f"Give {remedy}.",
        )


_OPTIMISERS: dict[str, Any] = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
_NOT_OF_A_PLAN = ("methods", "weightings", "level", "aspects", "index", "every_checkpoint")
_NOT_OF_A_RUN = (*_NOT_OF_A_PLAN, "budget_seconds", "most_queries", "sets", "seeds", "leave_one_out")
"""Options that change neither the plan, nor what one run of further training does."""


@dataclass(frozen=True)
class CalibrationPlan:
    """What a calibration will do, as plain values.

    `training_evidence` says where optimiser and rate come from, and which rates were tried.
    """

    calibration_id: str
    model_version_id: str
    index_id: str
    query_source: QuerySource
    query_ids: tuple[str, ...]
    steps: tuple[int, ...]
    sets: int
    seeds: int
    threads: int
    seconds_a_run: float = field(compare=False)
    single_examples: int = 0
    single_seeds: int = 0
    optimiser: Optimiser | None = None
    learning_rate: float | None = None
    batch_size: int | None = None
    training_evidence: Mapping[str, Any] = field(default_factory=dict, compare=False)

    def filled_in(self, options: CalibrateOptions) -> CalibrateOptions:
        """Options with the plan's optimiser, rate and batch size; plans of before say none and had fixed ones."""
        before = options.as_before()
        return replace(
            options,
            optimiser=self.optimiser or before.optimiser,
            learning_rate=self.learning_rate or before.learning_rate,
            batch_size=self.batch_size or before.batch_size,
        )

    @property
    def runs(self) -> int:
        """Runs of further training: one a seed and left-out set, and one a seed on all data."""
        return max(self.seeds, self.single_seeds) + self.seeds * self.sets + self.single_seeds * self.single_examples

    @property
    def seconds(self) -> float:
        """The estimate for everything that it trains."""
        return self.runs * self.seconds_a_run

    @property
    def fitted_amounts(self) -> tuple[int, ...]:
        """Amounts of training that candidates are chosen for: the shortest and the longest."""
        return tuple(dict.fromkeys((self.steps[0], self.steps[-1])))

    def question_of(self, steps: int) -> Question | None:
        """`now` for the shortest amount, `training` for the longest; none for others, or where there is one alone."""
        if len(self.steps) == 1 or steps not in self.fitted_amounts:
            return None
        return "now" if steps == self.steps[0] else "training"


def calibrate_options(model: WatchedModel) -> CalibrateOptions:
    """What the settings say of calibrations of a watched model."""
    return CalibrateOptions(
        optimiser=next((each for each in OPTIMISERS if each == model.optimiser), None),
        learning_rate=model.learning_rate or None,
        batch_size=model.batch_size or None,
        steps=tuple(model.steps),
    )


@dataclass(frozen=True)
class Amounts:
    """How much is trained: steps of a run, left-out halves and their seeds, left-out single examples and theirs."""

    steps: tuple[int, ...]
    sets: int
    seeds: int
    single_examples: int = 0
    single_seeds: int = 0


def fitted(cost: RunCost, options: CalibrateOptions) -> Amounts:
    """The counts that the options give, else what fits their budget."""
    if options.sets:
        single_seeds = options.seeds if options.leave_one_out else 0
        return Amounts(options.steps, options.sets, options.seeds, options.leave_one_out, single_seeds)
    return fit_to_budget(options.budget_seconds, cost, options)


def fit_to_budget(seconds: float, cost: RunCost, options: CalibrateOptions) -> Amounts:
    """What fits: enough sets to choose by come before longer training, then seeds lower the noise.

    Single examples get their own share of the budget, and as many seeds as it holds.

    Raises:
        UsageError: when not even the shortest training fits; it says what would.
    """
    share = TRAINING_SHARE * (1 - SHARE_OF_SINGLE_EXAMPLES if options.leave_one_out else 1)
    least = FEWEST_SEEDS * (FEWEST_SETS + 1)
    enough = FEWEST_SEEDS * (ENOUGH_SETS + 1)
    for count in range(len(options.steps), 0, -1):
        steps = options.steps[:count]
        a_run = cost.of(options.recipe(steps))
        affordable = share * seconds / a_run
        single_seeds = _single_seeds(seconds, a_run, options)
        too_few = options.leave_one_out and single_seeds < FEWEST_SEEDS
        if affordable >= (least if count == 1 else enough) and not too_few:
            sets = int(min(ENOUGH_SETS, affordable / FEWEST_SEEDS - 1))
            seeds = int(min(MOST_SEEDS, affordable / (sets + 1)))
            sets = int(min(MOST_SETS, affordable / seeds - 1))
            return Amounts(steps, sets, seeds, options.leave_one_out, single_seeds)
    a_run = cost.of(options.recipe(options.steps[:1]))
    shortest, alone = a_run * least / share, 0.0
    if options.leave_one_out:
        alone = a_run * FEWEST_SEEDS * (options.leave_one_out + 1) / (TRAINING_SHARE * SHARE_OF_SINGLE_EXAMPLES)
        shortest = max(shortest, alone)
        least += FEWEST_SEEDS * (options.leave_one_out + 1)
    raise UsageError(
        f"A budget of {seconds:.0f} s does not hold {least} runs of {options.steps[0]} steps, the least that says "
        "anything.",
        f"Give at least {shortest:.0f} s, or fewer steps{', or leave fewer examples out' if alone else ''}.",
    )


def _single_seeds(seconds: float, a_run: float, options: CalibrateOptions) -> int:
    if not options.leave_one_out:
        return 0
    affordable = TRAINING_SHARE * SHARE_OF_SINGLE_EXAMPLES * seconds / a_run
    return int(min(MOST_SEEDS, affordable / (options.leave_one_out + 1)))


def calibration_id(
    index_id: str, contents: Sequence[str], steps: Sequence[int], threads: int, options: CalibrateOptions
) -> str:
    """Digest of all that a run of further training depends on, but its seed and left-out set."""
    return sha256_json(
        said_of_run(options) | {"index": index_id, "queries": list(contents), "steps": list(steps), "threads": threads}
    )


def said_of_run(options: CalibrateOptions) -> dict[str, Any]:
    """The options that one run of further training depends on."""
    return {name: value for name, value in asdict(options).items() if name not in _NOT_OF_A_RUN}


def kept_plan(
    workspace: Workspace, model_version_id: str, index_id: str, options: CalibrateOptions
) -> CalibrationPlan | None:
    """The plan that an earlier call with these options made."""
    path = _plan_path(workspace, model_version_id, index_id, options)
    if not path.is_file():
        return None
    said: dict[str, Any] = json.loads(path.read_bytes())
    lists = {name: tuple(said[name]) for name in ("query_ids", "steps")}
    plan: CalibrationPlan = CalibrationPlan(**{**said, **lists})
    return plan


def keep_plan(workspace: Workspace, plan: CalibrationPlan, options: CalibrateOptions) -> None:
    """Pin the plan for calls with the same options."""
    write_atomically(_plan_path(workspace, plan.model_version_id, plan.index_id, options), canonical_json(asdict(plan)))


def _plan_path(workspace: Workspace, model_version_id: str, index_id: str, options: CalibrateOptions) -> Path:
    said = {name: value for name, value in asdict(options).items() if name not in _NOT_OF_A_PLAN}
    said |= {"model_version": model_version_id, "index": index_id}
    return workspace.root / "calibrations" / f"plan-{sha256_json(said)}.json"
