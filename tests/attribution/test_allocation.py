from __future__ import annotations

import pytest
import torch
from torch import nn

from gradtrail.attribution.features.plan import FeatureSettings, plan_features, plan_from_config
from gradtrail.attribution.gradients.capture import compute_features
from gradtrail.attribution.projection.allocation import SMALLEST, allocate
from gradtrail.errors import UsageError


@pytest.mark.parametrize("budget", [16, 17, 100, 999, 5000, 10**9])
def test_dimensions_use_the_budget_and_stay_within_their_bounds(budget):
    sizes = [10, 400, 90_000, 2_500_000]
    found = allocate(sizes, budget)
    assert sum(found) <= budget
    assert all(min(size, SMALLEST) <= each <= size for each, size in zip(found, sizes, strict=True))
    if budget < sum(sizes):
        assert sum(found) > budget - len(sizes) - SMALLEST


def test_shares_are_proportional_to_the_square_root_of_the_size():
    assert allocate([10_000, 40_000, 90_000], 600) == pytest.approx([100, 200, 300], abs=1)


def test_what_a_small_group_does_not_need_goes_to_the_others():
    assert allocate([9, 10_000, 10_000], 1009) == pytest.approx([9, 500, 500], abs=1)
    assert allocate([9, 10], 1000) == [9, 10]


def test_a_budget_below_the_smallest_dimensions_says_what_is_needed():
    with pytest.raises(UsageError, match="total dimension of 8 is too small for 3 parameter groups") as caught:
        allocate([100, 100, 2], 8)
    assert "at least 10" in caught.value.remedy


def test_a_plan_keeps_its_total_dimension_and_the_norm_of_gradients(perceptron):
    adapter, model, examples = perceptron
    settings = FeatureSettings(total_dimension=400)
    plan = plan_features(model, settings)
    assert 300 < plan.dimension <= 400
    assert plan_from_config(model, plan.config()) == plan
    assert plan.config()["total_dimension"] == 400
    assert "total_dimension" not in plan_features(model).config()
    vectors = compute_features(adapter, model, examples, plan).vectors
    exact = compute_features(adapter, model, examples, plan_features(model, FeatureSettings(10**6))).vectors
    assert vectors.square().sum() == pytest.approx(exact.square().sum().item(), rel=0.3)


def test_a_total_dimension_that_exceeds_the_model_stores_it_exactly():
    plan = plan_features(nn.Linear(3, 2), FeatureSettings(total_dimension=1000))
    assert (plan.dimension, plan.groups[0].exact) == (8, True)
    assert torch.equal(plan.projections(torch.float32)[0].inputs[0], torch.eye(4))


def test_a_total_dimension_that_is_too_small_is_refused(perceptron):
    with pytest.raises(UsageError, match="too small for 7 parameter groups"):
        plan_features(perceptron[1], FeatureSettings(total_dimension=10))
