"""Figures of a calibration: which candidate is best for which amount of training, and what the ledger keeps of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from gradtrail.attribution.fidelity.effects import Effects
from gradtrail.attribution.fidelity.evaluation import FidelityFigure, fidelity
from gradtrail.nouns import Fidelity, Weighting
from gradtrail.tasks.calibrate.candidate_methods import Prediction
from gradtrail.tasks.calibrate.plans import CalibrateOptions, CalibrationPlan
from gradtrail.tasks.calibrate.queries import QueryRoles
from gradtrail.tasks.core.models import PinnedModel

Scope = Literal["all", "uniform", "method", "uniform method"]
"""Among which candidates one is the best: all, those with uniform weights, and the same of one method."""


@dataclass(frozen=True)
class MethodFidelity:
    """What was measured for one method with its parameters and weighting, on queries that nothing was chosen on.

    Attributes:
        method: its name.
        parameters: what pins it.
        index_ids: what it scores.
        weighting: of its groups.
        by_steps: one figure an amount of training, random halves left out.
        singles_by_steps: the same with single examples left out; empty where that was not asked for.
        chosen: whether method `auto` takes it: the best after the longest training.
        best_of: by fitted amount of training, the scopes in which it is the best; none where it could not be measured.
    """

    method: str
    parameters: Mapping[str, Any]
    index_ids: tuple[str, ...]
    weighting: Weighting
    by_steps: tuple[FidelityFigure, ...]
    singles_by_steps: tuple[FidelityFigure, ...]
    chosen: bool
    best_of: Mapping[int, tuple[Scope, ...]]


@dataclass(frozen=True)
class Tried:
    """A prediction under a weighting, with its rank correlation on the choosing queries by amount of training.

    One that answers another question, such as an aspect, does not compete.
    """

    prediction: Prediction
    weighting: Weighting
    choosing: Mapping[int, float]
    competes: bool = True

    @property
    def method(self) -> str:
        """The name of its method."""
        return str(self.prediction.candidate.spec.method)


def tried(
    prediction: Prediction, weighting: Weighting, halves: Effects, roles: QueryRoles, *, competes: bool = True
) -> Tried:
    """The candidate measured on the queries that choose."""
    predicted = prediction.effects(weighting)
    choosing = {steps: fidelity(predicted, halves, steps, roles.choosing).spearman for steps in halves.steps}
    return Tried(prediction, weighting, choosing, competes)


def best(candidates: Sequence[Tried], steps: int) -> Tried:
    """The candidate with the largest fidelity on the choosing queries; the first of equals."""
    return max(candidates, key=lambda each: each.choosing[steps])


def reported(
    candidates: Sequence[Tried], halves: Effects, singles: Effects | None, plan: CalibrationPlan, roles: QueryRoles
) -> list[MethodFidelity]:
    """The figures of every candidate on the reporting queries, in order."""
    scopes = [_scopes(candidates, each, plan) for each in candidates]
    found = []
    for each, best_of in zip(candidates, scopes, strict=True):
        predicted, alone = each.prediction.effects(each.weighting), each.prediction.single_effects(each.weighting)
        by_singles = []
        if singles is not None and alone is not None:
            by_singles = [fidelity(alone, singles, steps, roles.reporting) for steps in singles.steps]
        by_steps = tuple(fidelity(predicted, halves, steps, roles.reporting) for steps in halves.steps)
        unmeasured = {figure.steps for figure in by_steps if not figure.could_be_measured}
        settled = {steps: () if steps in unmeasured else scopes for steps, scopes in best_of.items()}
        found.append(
            MethodFidelity(
                each.method,
                each.prediction.parameters,
                each.prediction.candidate.index_ids,
                each.weighting,
                by_steps,
                tuple(by_singles),
                chosen="all" in settled[plan.steps[-1]],
                best_of=settled,
            )
        )
    return found


def _scopes(candidates: Sequence[Tried], one: Tried, plan: CalibrationPlan) -> dict[int, tuple[Scope, ...]]:
    """In which scopes a candidate is the best, by fitted amount of training."""
    if not one.competes:
        return dict.fromkeys(plan.fitted_amounts, ())
    competing = [each for each in candidates if each.competes]
    uniform = [each for each in competing if not each.weighting.group_weights]
    among: dict[Scope, list[Tried]] = {
        "all": competing,
        "uniform": uniform,
        "method": [each for each in competing if each.method == one.method],
        "uniform method": [each for each in uniform if each.method == one.method],
    }
    return {
        steps: tuple(scope for scope, others in among.items() if best(others, steps) is one)
        for steps in plan.fitted_amounts
    }


def ledger_rows(
    pinned: PinnedModel,
    methods: Sequence[MethodFidelity],
    plan: CalibrationPlan,
    roles: QueryRoles,
    options: CalibrateOptions,
    said: Mapping[str, Any],
) -> list[Fidelity]:
    """One row a method, weighting, amount of training and kind of left-out set; `said` is further evidence of all."""
    return [
        _row(pinned, method, figure, plan, roles, options, said)
        for method in methods
        for figure in (*method.by_steps, *method.singles_by_steps)
    ]


def _row(
    pinned: PinnedModel,
    measured: MethodFidelity,
    figure: FidelityFigure,
    plan: CalibrationPlan,
    roles: QueryRoles,
    options: CalibrateOptions,
    said: Mapping[str, Any],
) -> Fidelity:
    longest = figure.steps == plan.steps[-1]
    subset = figure.metric == "fidelity_subset"
    evidence = {
        "calibration_id": plan.calibration_id,
        "index_ids": list(measured.index_ids),
        "target": options.target,
        "query_source": plan.query_source,
        "queries_fitting": len(roles.fitting),
        "queries_choosing": len(roles.choosing),
        "steps": figure.steps,
        "longest": longest,
        "horizon": plan.question_of(figure.steps) or "",
        "chosen": subset and longest and measured.chosen,
        "best_of": list(measured.best_of.get(figure.steps, ())) if subset else [],
        "optimiser": options.optimiser,
        "learning_rate": options.learning_rate,
        "batch_size": options.batch_size,
        **plan.training_evidence,
        "sets": plan.sets if subset else plan.single_examples,
        "seeds": plan.seeds if subset else plan.single_seeds,
        "cosine": figure.cosine,
        "cosine_standard_error": figure.cosine_error,
        "cosine_ceiling": figure.cosine_ceiling,
        "ceiling_stands": figure.noise_ceiling.stands,
        "ceiling_error": figure.noise_ceiling.spearman_error,
        "agreement": figure.noise_ceiling.agreement,
        "agreement_error": figure.noise_ceiling.agreement_error,
        "seeds_that_would_do": figure.noise_ceiling.seeds_that_would_do,
        **said,
    }
    return Fidelity(
        checkpoint_id=pinned.serving.checkpoint_id,
        method=measured.method,
        weighting_id=measured.weighting.weighting_id,
        metric=figure.metric,
        value=figure.spearman,
        standard_error=figure.spearman_error,
        ceiling=figure.spearman_ceiling,
        queries=figure.queries,
        parameters=measured.parameters,
        evidence=evidence,
    )
