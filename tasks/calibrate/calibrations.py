"""Calibrate: how well each method predicts what further training does to this very checkpoint, and which does best."""

from __future__ import annotations

from dataclasses import asdict
from math import isfinite
from typing import Any

import torch

from gradtrail.attribution.methods.registry import find_method
from gradtrail.nouns import Weighting
from gradtrail.tasks.calibrate.aspects import aspect_candidates, refuse_unknown_aspects
from gradtrail.tasks.calibrate.candidate_methods import Predictor, candidates
from gradtrail.tasks.calibrate.figures import MethodFidelity, best, ledger_rows, reported, tried
from gradtrail.tasks.calibrate.plans import (
    COUNTED_THREADS,
    CalibrateOptions,
    CalibrationPlan,
    calibration_id,
    fitted,
    keep_plan,
    kept_plan,
)
from gradtrail.tasks.calibrate.queries import query_roles
from gradtrail.tasks.calibrate.runs import (
    drawn_queries,
    fastest,
    finished_runs,
    single_effects,
    stationarity,
    subset_effects,
    training_towards,
)
from gradtrail.tasks.calibrate.weightings import Learned, learned_candidates, with_evidence
from gradtrail.tasks.core.extensions import load_method
from gradtrail.tasks.core.models import pinned_model
from gradtrail.tasks.core.progress import progress_bar, say
from gradtrail.tasks.core.workspace import Workspace
from gradtrail.tasks.index.opened import method_indexes, open_index


def plan_calibration(workspace: Workspace, model_version_id: str, options: CalibrateOptions) -> CalibrationPlan:
    """Draw queries, fit sets, seeds and steps to the budget or take those given; says what it will take.

    A plan that was begun with the same options is taken up again while its queries are still the ones drawn.

    Raises:
        UsageError: for an unknown method, a budget that holds nothing, or too few queries.
        NotFoundError: if there is no index, or none that was asked for or that a method scores.
    """
    for method in options.methods:
        load_method(workspace, method)
        find_method(method)
    pinned = pinned_model(workspace, model_version_id)
    refuse_unknown_aspects(workspace, pinned, options.aspects)
    [index_id] = method_indexes(workspace, model_version_id, "grad_dot", only=options.index)
    opened = open_index(workspace, pinned, index_id)
    candidates(workspace, pinned, index_id, options)
    query_set = drawn_queries(workspace, pinned, opened, options)
    query_roles(len(query_set.examples), options.weightings, options.seed)
    contents = [f"{query.example_id}:{query.content_sha256}" for query in query_set.examples]
    plan = kept_plan(workspace, model_version_id, index_id, options)
    if plan is None or plan.calibration_id != calibration_id(index_id, contents, plan.steps, plan.threads, options):
        threads, cost = fastest(
            training_towards(pinned, opened, query_set, options, options.steps),
            [COUNTED_THREADS] if options.sets else [1, torch.get_num_threads()],
        )
        amounts = fitted(cost, options)
        plan = CalibrationPlan(
            calibration_id=calibration_id(index_id, contents, amounts.steps, threads, options),
            model_version_id=model_version_id,
            index_id=index_id,
            query_source=query_set.source,
            query_ids=tuple(query.example_id for query in query_set.examples),
            steps=amounts.steps,
            sets=amounts.sets,
            seeds=amounts.seeds,
            threads=threads,
            seconds_a_run=round(cost.of(options.recipe(amounts.steps)), 6),
            single_examples=amounts.single_examples,
            single_seeds=amounts.single_seeds,
        )
        keep_plan(workspace, plan, options)
    singles = ""
    if plan.single_examples:
        singles = f" and {plan.single_examples} single examples with {plan.single_seeds} seeds"
    say(
        f"Further training of {model_version_id}: {plan.sets} random halves left out, {plan.seeds} seeds{singles}, "
        f"{', '.join(map(str, plan.steps))} steps, towards {len(plan.query_ids)} {plan.query_source}: "
        f"{plan.runs} runs, about {plan.seconds:.0f} s."
    )
    return plan


def train_further(workspace: Workspace, plan: CalibrationPlan, options: CalibrateOptions) -> int:
    """Train every run that an earlier call did not finish; returns how many there were.

    Raises:
        ModelError: when training diverges.
    """
    before = finished_runs(workspace, plan, options)
    subset_effects(workspace, plan, options)
    single_effects(workspace, plan, options)
    for warning in stationarity(workspace, plan, options).warnings:
        say(warning)
    return plan.runs - before


def measure_fidelity(workspace: Workspace, plan: CalibrationPlan, options: CalibrateOptions) -> list[MethodFidelity]:
    """Compare methods with what was trained, choose on some queries, record the figures of others.

    The largest fidelity after the longest training is chosen for method `auto`. Where the noise ceiling does not stand
    off zero, nothing is chosen and no weights are learned: it would be a choice on noise.
    """
    halves, singles = subset_effects(workspace, plan, options), single_effects(workspace, plan, options)
    pinned = pinned_model(workspace, plan.model_version_id)
    query_set = drawn_queries(workspace, pinned, open_index(workspace, pinned, plan.index_id), options)
    roles = query_roles(len(plan.query_ids), options.weightings, options.seed)
    predictor = Predictor(workspace, pinned, query_set, halves, singles, options)
    named = candidates(workspace, pinned, plan.index_id, options)
    predictions = []
    with progress_bar("measuring methods", len(named)) as bar:
        for candidate in named:
            predictions.append(predictor.predict(candidate))
            bar.advance(1)
    uniform = [tried(prediction, Weighting(), halves, roles) for prediction in predictions]
    learned = Learned((), ())
    if any(halves.ceiling(steps, roles.reporting).stands for steps in plan.fitted_amounts):
        learned = learned_candidates(uniform, halves, roles, plan, options)
    competing = [*uniform, *learned.tried]
    of_one = [each for each in competing if len(each.prediction.members) == 1]
    best_of_one = best(of_one or competing, plan.steps[-1]).prediction
    aspects = aspect_candidates(workspace, pinned, best_of_one, halves, roles, options)
    found = with_evidence(reported([*competing, *aspects], halves, singles, plan, roles), pinned, plan, options)
    settled = stationarity(workspace, plan, options)
    losses = {name: value if isfinite(value) else None for name, value in asdict(settled).items()}
    said: dict[str, Any] = {"stationarity": losses, "warnings": list(settled.warnings)}
    if roles.not_fitted_because:
        said["no_weights_because"] = roles.not_fitted_because
    if learned.fell_back:
        said["fell_back"] = [list(each) for each in learned.fell_back]
    ledger = workspace.ledger()
    for weighting in {each.weighting.weighting_id: each.weighting for each in found}.values():
        ledger.record_weighting(weighting)
    ledger.record_fidelities(ledger_rows(pinned, found, plan, roles, options, said))
    return found
