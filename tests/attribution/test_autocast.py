from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from gradtrail.attribution.features.plan import FeatureSettings, plan_features, plan_from_config
from gradtrail.attribution.gradients.capture import compute_features
from gradtrail.attribution.gradients.checks import check_capture
from gradtrail.errors import ModelError, UsageError

LOWER = FeatureSettings(group_dimension=36, autocast="bfloat16")


class Sequences(nn.Module):
    """Layers with a rule, attention, and a recurrent layer without one."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.attend = nn.Linear(3, 6), nn.MultiheadAttention(6, 2, batch_first=True)
        self.recur, self.leave = nn.LSTM(6, 6, batch_first=True), nn.Linear(6, 5)
        self.seen: list[torch.dtype] = []

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.enter(inputs)
        self.seen.append(hidden.dtype)
        hidden = hidden + self.attend(hidden, hidden, hidden)[0]
        return self.leave(self.recur(hidden)[0].sum(1))


@pytest.mark.filterwarnings("ignore:.*one example at a time")
def test_the_model_runs_in_lower_precision_and_its_features_stay_close(make_classifier, make_examples):
    torch.manual_seed(0)
    examples = make_examples(6, 4, 3)
    adapter = make_classifier(Sequences, examples)
    model = adapter.build_model()
    plan = plan_features(model, LOWER)
    found = compute_features(adapter, model, examples, plan)
    assert torch.bfloat16 in model.seen
    assert (found.vectors.dtype, found.losses.dtype) == (torch.float32, torch.float64)
    expected = compute_features(adapter, model, examples, plan_features(model, FeatureSettings(36)))
    cosine = functional.cosine_similarity(found.vectors, expected.vectors)
    assert 0.99 < cosine.min() < 1
    assert torch.allclose(found.losses, expected.losses, rtol=0.02)
    check_capture(adapter, model, examples, plan)


def test_autocast_is_part_of_the_configuration_only_where_it_is_on(perceptron):
    model = perceptron[1]
    plan = plan_features(model, LOWER)
    assert plan.config()["autocast"] == "bfloat16"
    assert plan_from_config(model, plan.config()) == plan
    assert "autocast" not in plan_features(model).config()
    with pytest.raises(UsageError, match="autocast='float8'"):
        plan_features(model, FeatureSettings(autocast="float8"))


def test_a_wrong_gradient_is_still_found_in_lower_precision(make_classifier, make_examples):
    class Reusing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.outer = nn.Linear(6, 6), nn.Linear(6, 5)

        def forward(self, inputs: Tensor) -> Tensor:
            return self.outer(functional.linear(self.inner(inputs).tanh(), self.inner.weight))

    examples = make_examples(4, 6)
    adapter = make_classifier(Reusing, examples)
    model = adapter.build_model()
    with pytest.raises(ModelError, match="layer inner are not its gradient"):
        check_capture(adapter, model, examples, plan_features(model, replace(LOWER, fallback=False)))
