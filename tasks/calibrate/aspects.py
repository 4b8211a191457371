"""Weightings for aspects: which layers tell an attribute of the training data, such as its author (METHODS: aspect)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from gradtrail.attribution.features.weights import group_weights
from gradtrail.attribution.fidelity.effects import Effects
from gradtrail.attribution.fidelity.evaluation import FEWEST_QUERIES
from gradtrail.attribution.methods.registry import settled
from gradtrail.attribution.scoring.contribution_blocks import Contributions, contributions
from gradtrail.attribution.weighting.aspects import same_value_share
from gradtrail.attribution.weighting.fitting import Aspect, fit_weighting
from gradtrail.errors import UsageError
from gradtrail.lineage.read import queries
from gradtrail.nouns import Example, Weighting
from gradtrail.tasks.audit.preparing import prepare_audit
from gradtrail.tasks.calibrate.candidate_methods import Prediction, query_features
from gradtrail.tasks.calibrate.figures import Tried, tried
from gradtrail.tasks.calibrate.plans import CalibrateOptions
from gradtrail.tasks.calibrate.queries import QueryRoles, as_queries
from gradtrail.tasks.calibrate.weightings import fitting_settings, without_examples
from gradtrail.tasks.core.models import PinnedModel
from gradtrail.tasks.core.progress import say
from gradtrail.tasks.core.workspace import Workspace
from gradtrail.tasks.index.opened import open_index


def refuse_unknown_aspects(workspace: Workspace, pinned: PinnedModel, aspects: Sequence[str]) -> None:
    """Refuse attributes that tell no two training examples apart.

    Raises:
        UsageError: naming the attributes that do.
    """
    values: dict[str, int] = {}
    with workspace.ledger().read() as connection:
        for found in queries.attribute_counts(connection, pinned.dataset.dataset_version_id):
            values[found.attribute] = values.get(found.attribute, 0) + (found.value != "")
    telling = sorted(name for name, count in values.items() if count > 1)
    for aspect in aspects:
        if aspect not in telling:
            raise UsageError(
                f"The training examples of {pinned.model_version.model_version_id} have no attribute {aspect!r} with "
                "more than one value.",
                f"Choose one of {', '.join(telling)}." if telling else "Register the data with attributes.",
            )


def aspect_candidates(
    workspace: Workspace,
    pinned: PinnedModel,
    prediction: Prediction,
    halves: Effects,
    roles: QueryRoles,
    options: CalibrateOptions,
) -> list[Tried]:
    """One weighting an aspect for the method found best on one index, fitted on one half of some training examples.

    It is kept where, on the other half, more of the top attributions share the example's value than under uniform
    weights. Its fidelity is measured like any other, but it does not compete: it answers another question.
    """
    found = []
    for attribute in options.aspects:
        weighting = _fitted(workspace, pinned, prediction, attribute, options)
        said = weighting.evidence
        if weighting.group_weights:
            found.append(tried(prediction, weighting, halves, roles, competes=False))
            say(
                f"Aspect {attribute}: of the top {said['k']} attributions {said['share_learned']:.0%} share it, "
                f"{said['share_uniform']:.0%} under uniform weights."
            )
        else:
            say(f"Aspect {attribute}: no weighting was kept: {said['fell_back_because']}.")
    return found


def _fitted(
    workspace: Workspace, pinned: PinnedModel, prediction: Prediction, attribute: str, options: CalibrateOptions
) -> Weighting:
    if len(prediction.members) > 1:
        return Weighting(evidence={"fell_back_because": "the method adds up the scores of several checkpoints"})
    examples = _labelled(workspace, pinned, prediction, attribute, options)
    if len(examples) < 2 * FEWEST_QUERIES:
        cause = f"only {len(examples)} training examples carry the attribute, and {2 * FEWEST_QUERIES} are needed"
        return Weighting(evidence={"fell_back_because": cause})
    parts = [examples[0::2], examples[1::2]]
    (fitting, fitted_on), (held_out, reported_on) = (
        (_contributions(workspace, pinned, prediction, part, options), Aspect(attribute, _values(part, attribute)))
        for part in parts
    )
    settings = fitting_settings(prediction, options)
    weighting = fit_weighting("aspect", prediction.plan, settings, contributions=fitting, aspect=fitted_on)
    if not weighting.group_weights:
        return weighting
    uniform, learned = (
        float(same_value_share(held_out, reported_on, group_weights(each, prediction.plan), settings.ascent.k).mean())
        for each in (Weighting(), weighting)
    )
    said = {"share_uniform": uniform, "share_learned": learned, "held_out_queries": len(parts[1])}
    if learned > uniform:
        return replace(weighting, evidence={**weighting.evidence, **said})
    cause = (
        f"on other examples {learned:.0%} of the top attributions share the value, {uniform:.0%} under uniform weights"
    )
    return Weighting(evidence={"fell_back_because": cause, **said})


def _labelled(
    workspace: Workspace, pinned: PinnedModel, prediction: Prediction, attribute: str, options: CalibrateOptions
) -> list[Example]:
    opened = open_index(workspace, pinned, prediction.candidate.index_ids[-1])
    training = opened.examples(pinned)
    found: list[Example] = []
    for place in np.random.default_rng([options.seed, 1]).permutation(len(training)).tolist():
        if len(found) == 2 * options.most_queries:
            break
        if training[place].attributes.get(attribute):
            found.append(training[place])
    return as_queries(pinned, found, options.target)


def _contributions(
    workspace: Workspace,
    pinned: PinnedModel,
    prediction: Prediction,
    examples: Sequence[Example],
    options: CalibrateOptions,
) -> Contributions:
    """Of all training examples but these, to these as queries of the prediction's method."""
    candidate = prediction.candidate
    opened = open_index(workspace, pinned, candidate.index_ids[-1])
    rows = query_features(pinned, opened, examples, options)
    by_id = {example.example_id: example for example in examples}
    prepared = prepare_audit(
        workspace,
        pinned,
        [opened],
        [rows],
        settled(candidate.spec, pinned.adapter),
        Weighting(),
        lambda ids: [by_id[example_id] for example_id in ids],
        target=options.target,
        device=options.device,
    )
    [member] = prepared.members
    return without_examples(contributions(member.queries, member.rows, opened.plan), set(by_id))


def _values(examples: Sequence[Example], attribute: str) -> tuple[str, ...]:
    return tuple(example.attributes[attribute] for example in examples)
