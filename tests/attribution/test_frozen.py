"""Frozen parameters: training does not move them, so they have no part in the scores."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from gradtrail.attribution.features.plan import FeatureSettings, plan_features, plan_from_config
from gradtrail.attribution.fidelity.evaluation import predicted_effects
from gradtrail.attribution.fidelity.further_training import FurtherTraining, measure_effects, single_examples
from gradtrail.attribution.fidelity.training_loop import Recipe
from gradtrail.attribution.gradients.capture import compute_features
from gradtrail.attribution.methods.rules import prepare_queries
from gradtrail.attribution.methods.spec import MethodSpec
from gradtrail.attribution.numerics.correlation import cosines
from gradtrail.attribution.scoring.joint import Member, scoring_pass
from gradtrail.errors import ModelError

EXACT = FeatureSettings(group_dimension=10**6, dtype="float64")


def adapted() -> nn.Module:
    """A frozen body, a layer whose bias alone is trained, and a head."""
    torch.manual_seed(4)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 1)).double()
    for parameter in (*model[0].parameters(), model[2].weight):
        parameter.requires_grad_(False)
    return model


def test_scores_are_what_one_small_step_of_training_does(make_regressor, make_examples):
    examples = make_examples(24, 6)
    adapter, training, queries = make_regressor(adapted, examples), examples[:16], examples[16:]
    model = adapter.build_model()
    plan = plan_features(model, EXACT)
    measured = [compute_features(adapter, model, part, plan) for part in (queries, training)]
    scoring = scoring_pass([Member(prepare_queries(MethodSpec("grad_dot"), measured[0], plan), lambda: [measured[1]])])
    recipe = Recipe(lambda parameters: torch.optim.SGD(parameters, lr=1e-5), steps=(1,), batch_size=len(training))
    alone = single_examples([example.example_id for example in training], len(training))
    effects = measure_effects(FurtherTraining(adapter, model, training, queries, recipe), alone, [0, 1], kind="loo")
    assert cosines(predicted_effects(scoring, alone), effects.mean[0]).min() > 1 - 1e-6
    expected = predicted_effects(scoring, alone) * 1e-5 / len(training)
    found = effects.by_seed.mean(0)[0]
    assert np.abs(found - expected).max() < 1e-3 * np.abs(expected).max()


def test_frozen_parameters_are_named_and_coverage_is_counted_over_the_others():
    model = adapted()
    plan = plan_features(model, EXACT)
    assert plan.frozen == ("0.weight", "0.bias", "2.weight")
    assert plan.uncovered == ()
    assert [group.parameters for group in plan.groups] == [("4.weight", "4.bias"), ("2.bias",)]
    assert plan.covered_parameters == plan.total_parameters == 8 + 9
    assert plan_from_config(model, plan.config()) == plan
    only_rules = plan_features(model, FeatureSettings(fallback=False))
    assert (only_rules.uncovered, only_rules.covered_parameters) == (("2.bias",), 9)


def test_a_layer_that_shares_a_frozen_weight_is_no_obstacle_without_fallback():
    first, second = nn.Linear(5, 5), nn.Linear(5, 5)
    first.weight = second.weight = nn.Parameter(torch.eye(5), requires_grad=False)
    plan = plan_features(nn.Sequential(first, second, nn.Linear(5, 2)), FeatureSettings(fallback=False))
    assert [group.name for group in plan.groups] == ["2"]
    assert (plan.frozen, plan.uncovered) == (("0.weight",), ("0.bias", "1.bias"))


def test_a_model_that_is_frozen_whole_is_refused():
    with pytest.raises(ModelError, match=r"Every parameter of Linear is frozen, for example weight") as caught:
        plan_features(nn.Linear(2, 2).requires_grad_(False))
    assert "requires_grad" in caught.value.remedy
