"""Calibrate: how well each method foretells what further training does to this very checkpoint, and which does best."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray
from prefect import task
from prefect.cache_policies import NO_CACHE

from gradtrail.attribution.capture import compute_features
from gradtrail.attribution.effects import Effects
from gradtrail.attribution.evaluation import FidelityFigure, fidelity, predicted_effects, split_queries
from gradtrail.attribution.features import FeatureRows
from gradtrail.attribution.further_training import (
    FurtherTraining,
    RunCost,
    RunKey,
    measure_effects,
    random_halves,
)
from gradtrail.attribution.method_registry import METHODS, find_method
from gradtrail.errors import UsageError
from gradtrail.nouns import Example, Fidelity, Weighting
from gradtrail.tasks.calibration_plans import (
    CalibrateOptions,
    CalibrationPlan,
    KeptRuns,
    calibration_id,
    fit_to_budget,
    keep_plan,
    kept_plan,
)
from gradtrail.tasks.calibration_queries import QuerySet, draw_queries
from gradtrail.tasks.indexing import MEASURE_BATCH
from gradtrail.tasks.models import PinnedModel, pinned_model
from gradtrail.tasks.opened import OpenIndex, method_indexes, open_index
from gradtrail.tasks.preparing import MethodOptions, method_parameters, prepare_audit
from gradtrail.tasks.progress import progress_bar, say
from gradtrail.tasks.workspace import Workspace

BLOCK_DAMPINGS = (0.1, 1.0, 10.0, 100.0)
JOINT_DAMPINGS = (1.0, 10.0, 100.0, 1000.0)
"""Relative to the mean eigenvalue, which many directions without any curvature make small where groups are joined."""
LARGEST_JOINT_DIMENSION = 4096


@dataclass(frozen=True)
class MethodFidelity:
    """What was measured for one method with its parameters; `by_steps` holds one figure an amount of training."""

    method: str
    parameters: Mapping[str, Any]
    by_steps: tuple[FidelityFigure, ...]
    chosen: bool


@task(cache_policy=NO_CACHE)
def plan_calibration(workspace: Workspace, model_version_id: str, options: CalibrateOptions) -> CalibrationPlan:
    """Draw queries, time a few steps, fit sets, seeds and steps to the budget; says what it will take.

    A plan that was begun with the same options is taken up again while its queries are still the ones drawn.

    Raises:
        UsageError: for an unknown method, or a budget that holds nothing.
        NotFoundError: if there is no index.
    """
    for method in options.methods:
        find_method(method)
    pinned = pinned_model(workspace, model_version_id)
    opened = _serving_index(workspace, pinned)
    query_set = _queries(workspace, pinned, opened, options)
    contents = [f"{query.example_id}:{query.content_sha256}" for query in query_set.examples]
    split_queries(len(contents), 2)
    plan = kept_plan(workspace, opened.index.index_id, options)
    if plan is None or plan.calibration_id != calibration_id(
        opened.index.index_id, contents, plan.steps, plan.threads, options
    ):
        threads, cost = _fastest(_training(pinned, opened, query_set, options, options.steps))
        steps, sets, seeds = fit_to_budget(options.budget_seconds, cost, options)
        plan = CalibrationPlan(
            calibration_id=calibration_id(opened.index.index_id, contents, steps, threads, options),
            model_version_id=model_version_id,
            index_id=opened.index.index_id,
            query_source=query_set.source,
            query_ids=tuple(query.example_id for query in query_set.examples),
            steps=steps,
            sets=sets,
            seeds=seeds,
            threads=threads,
            seconds=round(seeds * (sets + 1) * cost.of(options.recipe(steps)), 3),
        )
        keep_plan(workspace, plan, options)
    say(
        f"Further training of {model_version_id}: {plan.sets} random halves left out, {plan.seeds} seeds, "
        f"{', '.join(map(str, plan.steps))} steps, towards {len(plan.query_ids)} {plan.query_source}: "
        f"{plan.runs} runs, about {plan.seconds:.0f} s."
    )
    return plan


@task(cache_policy=NO_CACHE)
def train_further(workspace: Workspace, plan: CalibrationPlan, options: CalibrateOptions) -> int:
    """Train every run that an earlier call did not finish; returns how many there were.

    Raises:
        ModelError: when training diverges.
    """
    before = sum(_kept(workspace, plan).get(key) is not None for key in _keys(plan, options))
    _effects(workspace, plan, options)
    return plan.runs - before


@task(cache_policy=NO_CACHE)
def measure_fidelity(workspace: Workspace, plan: CalibrationPlan, options: CalibrateOptions) -> list[MethodFidelity]:
    """Compare methods with what was trained, choose on one half of the queries, record the figures of the other.

    The largest fidelity after the longest training is chosen for method `auto`.
    """
    effects = _effects(workspace, plan, options)
    pinned = pinned_model(workspace, plan.model_version_id)
    query_set = _queries(workspace, pinned, open_index(workspace, pinned, plan.index_id), options)
    choosing, reporting = split_queries(len(plan.query_ids), 2, options.seed)
    longest = effects.steps[-1]
    candidates = _candidates(workspace, pinned, plan, options)
    measured: list[tuple[_Candidate, dict[str, Any], NDArray[Any]]] = []
    with progress_bar("measuring methods", len(candidates)) as bar:
        for candidate in candidates:
            parameters, predicted = _predict(workspace, pinned, candidate, query_set, effects)
            measured.append((candidate, parameters, predicted))
            bar.advance(1)
    best = max(measured, key=lambda each: fidelity(each[2], effects, longest, choosing).spearman)
    found = [
        MethodFidelity(
            candidate.options.method,
            parameters,
            tuple(fidelity(predicted, effects, steps, reporting) for steps in effects.steps),
            chosen=predicted is best[2],
        )
        for candidate, parameters, predicted in measured
    ]
    weighting = Weighting()
    ledger = workspace.ledger()
    ledger.record_weighting(weighting)
    ledger.record_fidelities(
        [
            _row(pinned, weighting, candidate, each, figure, plan, options)
            for (candidate, _, _), each in zip(measured, found, strict=True)
            for figure in each.by_steps
        ]
    )
    return found


@dataclass(frozen=True)
class _Candidate:
    """A method with parameters, and the indexes that it scores."""

    options: MethodOptions
    index_ids: tuple[str, ...]


def _candidates(
    workspace: Workspace, pinned: PinnedModel, plan: CalibrationPlan, options: CalibrateOptions
) -> list[_Candidate]:
    opened = open_index(workspace, pinned, plan.index_id)
    names = options.methods or _free_methods(opened)
    found = []
    for name in names:
        needs = set(find_method(name).needs)
        index_ids = tuple(method_indexes(workspace, plan.model_version_id, name))
        dampings: Sequence[float] = (1.0,)
        if needs & {"curvature", "diagonal", "training_rows"}:
            dampings = BLOCK_DAMPINGS
        elif needs & {"spectrum", "kernel"}:
            dampings = JOINT_DAMPINGS
        for damping in dampings:
            chosen = MethodOptions(name, "", damping, 0.0, 0.0, options.device, options.target)
            found.append(_Candidate(chosen, index_ids))
    return found


def _free_methods(opened: OpenIndex) -> tuple[str, ...]:
    """Methods that the index at hand serves without another one, and without solving for single outputs."""
    names = ["grad_dot", "grad_cos", "influence"]
    if opened.plan.dimension <= LARGEST_JOINT_DIMENSION:
        names += ["influence_global", "horizon"]
    if opened.plan.projection_kind == "eigen":
        names.append("ekfac")
    return tuple(name for name in names if name in METHODS)


def _predict(
    workspace: Workspace, pinned: PinnedModel, candidate: _Candidate, query_set: QuerySet, effects: Effects
) -> tuple[dict[str, Any], NDArray[Any]]:
    """The method's parameters, and the effects that it foretells: (sets, queries)."""
    opened = [open_index(workspace, pinned, index_id) for index_id in candidate.index_ids]
    parameters = method_parameters(pinned, candidate.options, [each.checkpoint for each in opened])
    by_id = {example.example_id: example for example in query_set.examples}

    def examples_of(query_ids: Sequence[str]) -> list[Example]:
        return [by_id[query_id] for query_id in query_ids]

    rows = [_features(pinned, each, query_set, candidate.options) for each in opened]
    prepared = prepare_audit(workspace, pinned, opened, rows, candidate.options, parameters, Weighting(), examples_of)
    return parameters, predicted_effects(prepared.scoring, effects.left_out)


def _features(pinned: PinnedModel, opened: OpenIndex, query_set: QuerySet, options: MethodOptions) -> FeatureRows:
    model = pinned.load(opened.checkpoint).to(options.device)
    pieces = [
        compute_features(
            pinned.adapter,
            model,
            query_set.examples[start : start + MEASURE_BATCH],
            opened.plan,
            target=options.target,
            device=options.device,
        )
        for start in range(0, len(query_set.examples), MEASURE_BATCH)
    ]
    return FeatureRows(
        example_ids=[example_id for piece in pieces for example_id in piece.example_ids],
        vectors=torch.cat([piece.vectors for piece in pieces]),
        losses=torch.cat([piece.losses for piece in pieces]),
        squared_norms=torch.cat([piece.squared_norms for piece in pieces]),
    )


def _effects(workspace: Workspace, plan: CalibrationPlan, options: CalibrateOptions) -> Effects:
    """Measured effects, from kept runs where there are any."""
    pinned = pinned_model(workspace, plan.model_version_id)
    opened = open_index(workspace, pinned, plan.index_id)
    query_set = _queries(workspace, pinned, opened, options)
    if tuple(query.example_id for query in query_set.examples) != plan.query_ids:
        raise UsageError("Outputs were recorded or erased while the calibration ran.", "Run gradtrail calibrate again.")
    training = _training(pinned, opened, query_set, options, plan.steps)
    kept = _kept(workspace, plan)
    with _threads(plan.threads), progress_bar("training further", plan.runs) as bar:

        def known(key: RunKey) -> NDArray[Any] | None:
            found = kept.get(key)
            bar.advance(int(found is not None))
            return found

        def keep(key: RunKey, losses: NDArray[Any]) -> None:
            kept.put(key, losses)
            bar.advance(1)

        examples = training.training
        return measure_effects(
            training,
            random_halves([examples[place].example_id for place in range(len(examples))], plan.sets, options.seed),
            _seeds(plan, options),
            kind="subset",
            known=known,
            keep=keep,
        )


def _training(
    pinned: PinnedModel, opened: OpenIndex, query_set: QuerySet, options: CalibrateOptions, steps: tuple[int, ...]
) -> FurtherTraining:
    return FurtherTraining(
        pinned.adapter,
        pinned.load(opened.checkpoint).to(options.device),
        opened.examples(pinned),
        query_set.examples,
        options.recipe(steps),
        options.target,
        options.device,
    )


def _queries(workspace: Workspace, pinned: PinnedModel, opened: OpenIndex, options: CalibrateOptions) -> QuerySet:
    return draw_queries(workspace, pinned, opened.examples(pinned), options.target, options.most_queries, options.seed)


def _serving_index(workspace: Workspace, pinned: PinnedModel) -> OpenIndex:
    [index_id] = method_indexes(workspace, pinned.model_version.model_version_id, "grad_dot")
    return open_index(workspace, pinned, index_id)


def _kept(workspace: Workspace, plan: CalibrationPlan) -> KeptRuns:
    return KeptRuns(workspace, plan.calibration_id)


def _seeds(plan: CalibrationPlan, options: CalibrateOptions) -> list[int]:
    return [options.seed + number for number in range(plan.seeds)]


def _keys(plan: CalibrationPlan, options: CalibrateOptions) -> Iterator[RunKey]:
    for seed in _seeds(plan, options):
        yield seed, None
        yield from ((seed, number) for number in range(plan.sets))


def _fastest(training: FurtherTraining) -> tuple[int, RunCost]:
    """One thread, or as many as torch has: small models run faster on one."""
    timed = {}
    for threads in {1, torch.get_num_threads()}:
        with _threads(threads):
            timed[threads] = training.cost()
    return min(timed.items(), key=lambda each: each[1].of(training.recipe))


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _row(
    pinned: PinnedModel,
    weighting: Weighting,
    candidate: _Candidate,
    measured: MethodFidelity,
    figure: FidelityFigure,
    plan: CalibrationPlan,
    options: CalibrateOptions,
) -> Fidelity:
    longest = figure.steps == plan.steps[-1]
    return Fidelity(
        checkpoint_id=pinned.serving.checkpoint_id,
        method=measured.method,
        weighting_id=weighting.weighting_id,
        metric=figure.metric,
        value=figure.spearman,
        standard_error=figure.spearman_error,
        ceiling=figure.spearman_ceiling,
        queries=figure.queries,
        parameters=measured.parameters,
        evidence={
            "calibration_id": plan.calibration_id,
            "index_ids": list(candidate.index_ids),
            "target": options.target,
            "query_source": plan.query_source,
            "steps": figure.steps,
            "longest": longest,
            "chosen": longest and measured.chosen,
            "optimiser": options.optimiser,
            "learning_rate": options.learning_rate,
            "batch_size": options.batch_size,
            "sets": plan.sets,
            "seeds": plan.seeds,
            "cosine": figure.cosine,
            "cosine_standard_error": figure.cosine_error,
            "cosine_ceiling": figure.cosine_ceiling,
        },
    )
