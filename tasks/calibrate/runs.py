"""Runs of further training of a calibration: trained once, kept as small files, read back as effects."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import torch

from gradtrail.attribution.fidelity.effects import EffectKind, Effects
from gradtrail.attribution.fidelity.further_training import (
    FurtherTraining,
    RunCost,
    RunKey,
    measure_effects,
    random_halves,
    single_examples,
)
from gradtrail.attribution.fidelity.resumable import Losses
from gradtrail.attribution.fidelity.stationarity import Stationarity, measure_stationarity
from gradtrail.errors import UsageError
from gradtrail.storage.files.atomic import write_atomically
from gradtrail.storage.files.kept_runs import KeptRuns
from gradtrail.tasks.calibrate.plans import CalibrateOptions, CalibrationPlan
from gradtrail.tasks.calibrate.queries import QuerySet, draw_queries
from gradtrail.tasks.core.models import PinnedModel, pinned_model
from gradtrail.tasks.core.progress import progress_bar
from gradtrail.tasks.core.workspace import Workspace
from gradtrail.tasks.index.opened import OpenIndex, open_index

_BAR: dict[EffectKind, str] = {"subset": "training without halves", "loo": "training without single examples"}
_WITHOUT: dict[EffectKind, str] = {"subset": "without", "loo": "without-single"}


def drawn_queries(workspace: Workspace, pinned: PinnedModel, opened: OpenIndex, options: CalibrateOptions) -> QuerySet:
    """The queries of a calibration with these options, as the ledger stands."""
    return draw_queries(workspace, pinned, opened.examples(pinned), options.target, options.most_queries, options.seed)


def training_towards(
    pinned: PinnedModel, opened: OpenIndex, query_set: QuerySet, options: CalibrateOptions, steps: tuple[int, ...]
) -> FurtherTraining:
    """Further training of the index's checkpoint on the examples that the index holds."""
    return FurtherTraining(
        pinned.adapter,
        pinned.load(opened.checkpoint).to(options.device),
        opened.examples(pinned),
        query_set.examples,
        options.recipe(steps),
        options.target,
        options.device,
    )


def fastest(training: FurtherTraining, threads: Sequence[int], seed: int = 0) -> tuple[int, RunCost]:
    """The number of threads that trains fastest, and its cost: small models run faster on one."""
    timed = {}
    for count in sorted(set(threads)):
        with using_threads(count):
            timed[count] = training.cost(seed)
    return min(timed.items(), key=lambda each: each[1].of(training.recipe))


def finished_runs(workspace: Workspace, plan: CalibrationPlan, options: CalibrateOptions) -> int:
    """How many runs of the plan are kept already."""
    first, halves, singles = options.seed, plan.sets, plan.single_examples
    keys: list[tuple[EffectKind, RunKey]] = [
        ("subset", (first + seed, None)) for seed in range(max(plan.seeds, plan.single_seeds))
    ]
    keys += [("subset", (first + seed, number)) for seed in range(plan.seeds) for number in range(halves)]
    keys += [("loo", (first + seed, number)) for seed in range(plan.single_seeds) for number in range(singles)]
    kept = {kind: _kept_runs(workspace, plan, kind) for kind in _WITHOUT}
    return sum(kept[kind].get(key) is not None for kind, key in keys)


def is_trained(workspace: Workspace, plan: CalibrationPlan, options: CalibrateOptions) -> bool:
    """Whether every run of the plan is kept."""
    return finished_runs(workspace, plan, options) == plan.runs


def subset_effects(workspace: Workspace, plan: CalibrationPlan, options: CalibrateOptions) -> Effects:
    """Effects of leaving random halves out, trained where no kept run tells them.

    Raises:
        ModelError: when training diverges.
        UsageError: when the queries are no longer those of the plan.
    """
    training = _training(workspace, plan, options)
    halves = random_halves(_example_ids(training), plan.sets, options.seed)
    return _effects(workspace, plan, options, training, "subset", halves, plan.seeds)


def first_run(workspace: Workspace, plan: CalibrationPlan, options: CalibrateOptions) -> None:
    """Train the first run of a plan, the one on all data, and keep it.

    Raises:
        DivergenceError: when training diverges.
    """
    kept, key = _kept_runs(workspace, plan, "subset"), (options.seed, None)
    if kept.get(key) is None:
        training = _training(workspace, plan, options)
        with using_threads(plan.threads):
            kept.put(key, training.run(options.seed))


def single_effects(workspace: Workspace, plan: CalibrationPlan, options: CalibrateOptions) -> Effects | None:
    """Effects of leaving single examples out; None where the plan has none.

    Raises:
        ModelError: when training diverges.
        UsageError: when the queries are no longer those of the plan.
    """
    if not plan.single_examples:
        return None
    training = _training(workspace, plan, options)
    singles = single_examples(_example_ids(training), plan.single_examples, options.seed)
    return _effects(workspace, plan, options, training, "loo", singles, plan.single_seeds)


def stationarity(workspace: Workspace, plan: CalibrationPlan, options: CalibrateOptions) -> Stationarity:
    """How far the model is from a minimum of its training loss; measured once a calibration, then read from a file.

    Raises:
        ModelError: when training diverges.
        UsageError: when the queries are no longer those of the plan.
    """
    path = _folder(workspace, plan) / "stationarity.json"
    if path.is_file():
        return Stationarity(**json.loads(path.read_bytes()))
    training = _training(workspace, plan, options)
    with using_threads(plan.threads):
        found = measure_stationarity(training, seed=options.seed)
    write_atomically(path, json.dumps(asdict(found)).encode())
    return found


def _effects(
    workspace: Workspace,
    plan: CalibrationPlan,
    options: CalibrateOptions,
    training: FurtherTraining,
    kind: EffectKind,
    removed: list[frozenset[str]],
    seeds: int,
) -> Effects:
    kept = _kept_runs(workspace, plan, kind)
    with using_threads(plan.threads), progress_bar(_BAR[kind], seeds * (len(removed) + 1)) as bar:

        def known(key: RunKey) -> Losses | None:
            found = kept.get(key)
            bar.advance(int(found is not None))
            return found

        def keep(key: RunKey, losses: Losses) -> None:
            kept.put(key, losses)
            bar.advance(1)

        chosen = [options.seed + number for number in range(seeds)]
        return measure_effects(training, removed, chosen, kind=kind, known=known, keep=keep)


def _kept_runs(workspace: Workspace, plan: CalibrationPlan, kind: EffectKind) -> KeptRuns:
    """Runs of one kind; those on all data serve both."""
    return KeptRuns(_folder(workspace, plan), _WITHOUT[kind])


def _folder(workspace: Workspace, plan: CalibrationPlan) -> Path:
    return workspace.root / "calibrations" / plan.calibration_id


def _training(workspace: Workspace, plan: CalibrationPlan, options: CalibrateOptions) -> FurtherTraining:
    pinned = pinned_model(workspace, plan.model_version_id)
    opened = open_index(workspace, pinned, plan.index_id)
    query_set = drawn_queries(workspace, pinned, opened, options)
    if tuple(query.example_id for query in query_set.examples) != plan.query_ids:
        raise UsageError("Outputs were recorded or erased while the calibration ran.", "Run gradtrail calibrate again.")
    return training_towards(pinned, opened, query_set, options, plan.steps)


def _example_ids(training: FurtherTraining) -> list[str]:
    return [training.training[place].example_id for place in range(len(training.training))]


@contextmanager
def using_threads(count: int) -> Iterator[None]:
    """Run torch on so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
