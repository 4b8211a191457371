"""Calibrate: how well each method predicts what further training does to this very checkpoint, and which does best."""

from __future__ import annotations

from dataclasses import asdict
from math import isfinite
from typing import Any

import torch

from gradtrail.attribution.methods.registry import find_method
from gradtrail.errors import DivergenceError, UsageError
from gradtrail.nouns import Weighting
from gradtrail.tasks.calibrate.aspects import aspect_candidates, refuse_unknown_aspects
from gradtrail.tasks.calibrate.candidate_methods import Predictor, candidates
from gradtrail.tasks.calibrate.figures import MethodFidelity, best, ledger_rows, reported, tried
from gradtrail.tasks.calibrate.plans import (
    CalibrateOptions,
    CalibrationPlan,
    calibration_id,
    fitted,
    keep_plan,
    kept_plan,
    refuse_sizes_beyond,
)
from gradtrail.tasks.calibrate.queries import QuerySet, query_roles
from gradtrail.tasks.calibrate.runs import (
    drawn_queries,
    fastest,
    finished_runs,
    first_run,
    is_trained,
    single_effects,
    stationarity,
    subset_effects,
    training_towards,
)
from gradtrail.tasks.calibrate.training_choices import ChosenTraining, chosen_training, in_words
from gradtrail.tasks.calibrate.weightings import Learned, learned_candidates, with_evidence
from gradtrail.tasks.core.extensions import load_method
from gradtrail.tasks.core.models import PinnedModel, pinned_model
from gradtrail.tasks.core.progress import progress_bar, say
from gradtrail.tasks.core.workspace import Workspace
from gradtrail.tasks.index.opened import OpenIndex, method_indexes, open_index


def refuse_calibration(workspace: Workspace, model_version_id: str, options: CalibrateOptions) -> None:
    """Refuse at once what cannot be calibrated, before anything is collected, timed or trained.

    Raises:
        UsageError: for an unknown method, aspect or device, or sizes that the training data does not hold.
        NotFoundError: if there is no index, or none that was asked for or that a method scores.
    """
    for method in options.methods:
        load_method(workspace, method)
        find_method(method)
    try:
        torch.empty(0, device=options.device)
    except (RuntimeError, AssertionError) as fault:
        raise UsageError(
            f"Nothing can be trained on the device {options.device!r}: {str(fault).splitlines()[0]}",
            "Choose cpu, or cuda or mps where this machine has it.",
        ) from fault
    pinned = pinned_model(workspace, model_version_id)
    refuse_unknown_aspects(workspace, pinned, options.aspects)
    opened = _calibrated_index(workspace, pinned, options)
    candidates(workspace, pinned, opened.index.index_id, options)
    refuse_sizes_beyond(len(opened.examples(pinned)), options)


def plan_calibration(workspace: Workspace, model_version_id: str, options: CalibrateOptions) -> CalibrationPlan:
    """Draw queries, choose how to train, fit sets, seeds and steps to the budget or take those given; says all of it.

    A plan that was begun with the same options is taken up again while its queries are still the ones drawn.

    Raises:
        UsageError: for what `refuse_calibration` refuses, a budget that holds nothing, or too few queries.
        NotFoundError: if there is no index, or none that was asked for or that a method scores.
        ModelError: when training diverges, at every rate that was tried where none was given.
    """
    refuse_calibration(workspace, model_version_id, options)
    pinned = pinned_model(workspace, model_version_id)
    opened = _calibrated_index(workspace, pinned, options)
    query_set = drawn_queries(workspace, pinned, opened, options)
    query_roles(len(query_set.examples), options.weightings, options.seed)
    before = _kept(workspace, pinned, opened, query_set, options.as_before())
    if before is not None and before.learning_rate is None and is_trained(workspace, before, options.as_before()):
        return before
    chosen = chosen_training(workspace, pinned, opened, query_set, options)
    plan, chosen = _lasting_plan(workspace, pinned, opened, query_set, chosen)
    if words := in_words(chosen):
        say(words)
    singles = ""
    if plan.single_examples:
        singles = f" and {plan.single_examples} single examples with {plan.single_seeds} seeds"
    say(
        f"Further training of {model_version_id}: {plan.sets} random halves left out, {plan.seeds} seeds{singles}, "
        f"{', '.join(map(str, plan.steps))} steps, towards {len(plan.query_ids)} {plan.query_source}: "
        f"{plan.runs} runs, about {plan.seconds:.0f} s."
    )
    return plan


def _calibrated_index(workspace: Workspace, pinned: PinnedModel, options: CalibrateOptions) -> OpenIndex:
    version = pinned.model_version.model_version_id
    [index_id] = method_indexes(workspace, version, "grad_dot", only=options.index)
    return open_index(workspace, pinned, index_id)


def _lasting_plan(
    workspace: Workspace, pinned: PinnedModel, opened: OpenIndex, query_set: QuerySet, chosen: ChosenTraining
) -> tuple[CalibrationPlan, ChosenTraining]:
    """The plan at the largest rate that was found at which the whole first run stays finite; a given rate is kept."""
    while True:
        try:
            plan = _plan(workspace, pinned, opened, query_set, chosen)
            if chosen.evidence:
                first_run(workspace, plan, chosen.options)
        except DivergenceError:
            if not chosen.slower:
                raise
            chosen = chosen.at(chosen.slower[0])
        else:
            return plan, chosen


def _plan(
    workspace: Workspace, pinned: PinnedModel, opened: OpenIndex, query_set: QuerySet, chosen: ChosenTraining
) -> CalibrationPlan:
    """The plan of training as it was chosen: the kept one, or one made and kept now."""
    options = chosen.options
    if kept := _kept(workspace, pinned, opened, query_set, options):
        return kept
    index_id = opened.index.index_id
    threads, cost = fastest(
        training_towards(pinned, opened, query_set, options, options.steps), options.training_threads, options.seed
    )
    amounts = fitted(cost, options)
    plan = CalibrationPlan(
        calibration_id=calibration_id(index_id, _contents(query_set), amounts.steps, threads, options),
        model_version_id=pinned.model_version.model_version_id,
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
        optimiser=options.optimiser,
        learning_rate=options.learning_rate,
        batch_size=options.batch_size,
        training_evidence=chosen.evidence,
    )
    keep_plan(workspace, plan, options)
    return plan


def _kept(
    workspace: Workspace, pinned: PinnedModel, opened: OpenIndex, query_set: QuerySet, options: CalibrateOptions
) -> CalibrationPlan | None:
    """The plan that an earlier call made with these options, if its queries are those that are drawn now."""
    index_id, contents = opened.index.index_id, _contents(query_set)
    kept = kept_plan(workspace, pinned.model_version.model_version_id, index_id, options)
    if kept is None or kept.calibration_id != calibration_id(index_id, contents, kept.steps, kept.threads, options):
        return None
    return kept


def _contents(query_set: QuerySet) -> list[str]:
    return [f"{query.example_id}:{query.content_sha256}" for query in query_set.examples]


def train_further(workspace: Workspace, plan: CalibrationPlan, options: CalibrateOptions) -> int:
    """Train every run that an earlier call did not finish; returns how many there were.

    Raises:
        ModelError: when training diverges.
    """
    options = plan.filled_in(options)
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
    options = plan.filled_in(options)
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
