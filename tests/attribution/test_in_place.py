from __future__ import annotations

import pytest
import torch
from torch import nn

from gradtrail.attribution.features.plan import FeatureSettings, plan_features
from gradtrail.attribution.gradients.capture import compute_features


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
def test_an_in_place_activation_on_a_sequence_changes_nothing(bias, make_classifier, make_examples, autograd_vectors):
    # A linear layer with a bias gives a view here, whose history autograd rewrites when the view is changed in place.
    def build() -> nn.Module:
        torch.manual_seed(0)
        hidden = [nn.Linear(6, 8, bias=bias), nn.ReLU(inplace=True), nn.Linear(8, 8, bias=bias), nn.ReLU(inplace=True)]
        return nn.Sequential(*hidden, nn.Flatten(), nn.Linear(32, 5))

    examples = make_examples(6, 4, 6)
    adapter = make_classifier(build, examples)
    model = build()
    plan = plan_features(model, FeatureSettings(group_dimension=16))
    rows = compute_features(adapter, model, examples, plan)
    expected = autograd_vectors(adapter, model, examples, plan)
    assert ((rows.vectors - expected).norm(dim=1) / expected.norm(dim=1)).max() < 1e-4
