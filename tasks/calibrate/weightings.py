"""Group weights of a calibration: learned on queries of their own, kept where they help on those that choose."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from gradtrail.attribution.fidelity.effects import Effects
from gradtrail.attribution.scoring.contribution_blocks import ContributionBlock, Contributions, contributions
from gradtrail.attribution.weighting.fitting import (
    EffectSplit,
    FittingSettings,
    best_or_uniform,
    self_supervised_choices,
)
from gradtrail.attribution.weighting.horizons import fit_horizon
from gradtrail.attribution.weighting.learning import TopKSettings
from gradtrail.digests import canonical_json
from gradtrail.nouns import Weighting
from gradtrail.tasks.calibrate.candidate_methods import Prediction
from gradtrail.tasks.calibrate.figures import MethodFidelity, Tried, best, tried
from gradtrail.tasks.calibrate.plans import CalibrateOptions, CalibrationPlan, LearnedObjective
from gradtrail.tasks.calibrate.queries import QueryRoles
from gradtrail.tasks.core.models import PinnedModel

_EXAMPLES_A_STRONGEST = 4
"""Each of the k strongest examples must stand out from at least so many."""


@dataclass(frozen=True)
class Learned:
    """Candidates under learned weights, and why other fits fell back to uniform, by objective, method and amount."""

    tried: tuple[Tried, ...]
    fell_back: tuple[tuple[str, str, int, str], ...]


def learned_candidates(
    uniform: Sequence[Tried], halves: Effects, roles: QueryRoles, plan: CalibrationPlan, options: CalibrateOptions
) -> Learned:
    """For each method and its indexes, objective and fitted amount, the weighting that helps, at its best damping.

    `further_training` is fitted at every damping; `self_supervised`, which reads the whole index again, at the damping
    that is best under uniform weights, and the effects on the choosing queries say how strongly to weight, if at all.
    """
    found: list[Tried] = []
    fell_back: list[tuple[str, str, int, str]] = []
    for (method, _), own in _families(uniform).items():
        if not roles.fitting:
            break
        for objective in options.weightings:
            fitted = _fitted(objective, own, halves, roles, plan, options)
            for steps, (prediction, weighting) in fitted.items():
                if not weighting.group_weights:
                    fell_back.append((objective, method, steps, str(weighting.evidence["fell_back_because"])))
                    continue
                said = dict(weighting.evidence) | {"further_steps": steps, "horizon": plan.question_of(steps) or ""}
                found.append(tried(prediction, replace(weighting, evidence=said), halves, roles))
    return Learned(tuple(_distinct(found)), tuple(fell_back))


def with_evidence(
    methods: Sequence[MethodFidelity], pinned: PinnedModel, plan: CalibrationPlan, options: CalibrateOptions
) -> list[MethodFidelity]:
    """The same, with what each learned weighting belongs to and gains in its evidence.

    `held_out_gain` is its fidelity on the reporting queries minus that of uniform weights, all else equal.
    """
    uniform = {_tuned(each): each for each in methods if not each.weighting.group_weights}
    found = []
    for each in methods:
        if each.weighting.group_weights:
            steps = each.weighting.evidence.get("further_steps", plan.steps[-1])
            gain = _figure(each, steps) - _figure(uniform[_tuned(each)], steps)
            said = dict(each.weighting.evidence) | {
                "calibration_id": plan.calibration_id,
                "checkpoint_id": pinned.serving.checkpoint_id,
                "model_version_id": plan.model_version_id,
                "index_ids": list(each.index_ids),
                "target": options.target,
                "method": each.method,
                "parameters": dict(each.parameters),
                "further_steps": steps,
                "held_out_gain": gain,
            }
            each = replace(each, weighting=replace(each.weighting, evidence=said))  # noqa: PLW2901 (the same, richer)
        found.append(each)
    return found


def _tuned(measured: MethodFidelity) -> tuple[str, bytes, tuple[str, ...]]:
    return measured.method, canonical_json(dict(measured.parameters)), measured.index_ids


def _figure(measured: MethodFidelity, steps: int) -> float:
    return next(figure.spearman for figure in measured.by_steps if figure.steps == steps)


def _families(candidates: Sequence[Tried]) -> dict[tuple[str, tuple[str, ...]], list[Tried]]:
    """Candidates by their method and the indexes that it scores, in order."""
    found: dict[tuple[str, tuple[str, ...]], list[Tried]] = {}
    for each in candidates:
        found.setdefault((each.method, each.prediction.candidate.index_ids), []).append(each)
    return found


def fitting_settings(prediction: Prediction, options: CalibrateOptions) -> FittingSettings:
    """How weights are learned: k gives way to small data."""
    k = max(1, min(TopKSettings().k, prediction.examples // _EXAMPLES_A_STRONGEST))
    return FittingSettings(level=options.level, ascent=TopKSettings(k=k))


def query_contributions(prediction: Prediction, positions: Sequence[int]) -> Contributions:
    """Contributions to some of the queries, without those of training examples that are queries themselves."""
    [member] = prediction.members
    queries = member.queries
    chosen = replace(
        queries,
        vectors=queries.vectors[list(positions)],
        query_ids=tuple(queries.query_ids[position] for position in positions),
    )
    return without_examples(contributions(chosen, member.rows, prediction.plan), set(chosen.query_ids))


def without_examples(streamed: Contributions, removed: set[str]) -> Contributions:
    """Contributions of all examples but some: a query must not stand out by itself."""

    def blocks() -> Iterator[ContributionBlock]:
        for block in streamed():
            kept = [place for place, example_id in enumerate(block.example_ids) if example_id not in removed]
            if len(kept) == len(block.example_ids):
                yield block
            elif kept:
                yield replace(
                    block,
                    example_ids=[block.example_ids[place] for place in kept],
                    attributes={name: [values[place] for place in kept] for name, values in block.attributes.items()},
                    values=block.values[:, kept],
                )

    return blocks


def _fitted(
    objective: LearnedObjective,
    own: Sequence[Tried],
    halves: Effects,
    roles: QueryRoles,
    plan: CalibrationPlan,
    options: CalibrateOptions,
) -> dict[int, tuple[Prediction, Weighting]]:
    """By amount of training: the prediction that does best with its weighting, or uniform with the reason."""
    amounts = plan.fitted_amounts
    measured: dict[int, NDArray[np.float64]] = {steps: halves.mean[halves.amount(steps)] for steps in amounts}
    if objective == "further_training":
        predictions = {float(place): each.prediction for place, each in enumerate(own)}
        settings = fitting_settings(own[0].prediction, options)
        reached = fit_horizon(
            lambda place: predictions[place].by_group,
            list(predictions),
            measured,
            own[0].prediction.plan,
            roles.fitting,
            roles.choosing,
            settings,
        )
        return {steps: (predictions[each.point], each.weighting) for steps, each in reached.items()}
    found = {}
    for steps, effects in measured.items():
        prediction = best(own, steps).prediction
        if len(prediction.members) > 1:
            cause = "scores of several checkpoints add up, and have no contributions by group of one index"
            found[steps] = prediction, Weighting(evidence={"objective": objective, "fell_back_because": cause})
            continue
        learned = self_supervised_choices(
            prediction.plan,
            fitting_settings(prediction, options),
            contributions=query_contributions(prediction, roles.fitting),
        )
        split = EffectSplit(prediction.by_group, effects, roles.fitting, roles.choosing)
        found[steps] = prediction, best_or_uniform(learned, prediction.plan, split)
    return found


def _distinct(candidates: Sequence[Tried]) -> list[Tried]:
    """Without repeats: the same weights may be the best for two amounts of training."""
    seen = set()
    kept = []
    for each in candidates:
        key = (id(each.prediction), each.weighting.weighting_id)
        if key not in seen:
            seen.add(key)
            kept.append(each)
    return kept
