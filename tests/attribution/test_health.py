from __future__ import annotations

import torch
from torch import Tensor, nn

from gradtrail.attribution.features.health import gradient_health
from gradtrail.attribution.features.plan import plan_features
from gradtrail.attribution.gradients.capture import iterate_features
from gradtrail.nouns import Example


class Dead(nn.Module):
    """A layer behind a unit that is always off, a parameter that nothing uses, and one that works."""

    def __init__(self) -> None:
        super().__init__()
        self.dead, self.read = nn.Linear(3, 4), nn.Linear(3, 5, bias=False)
        self.unused = nn.Parameter(torch.ones(2))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.read(inputs) + (self.dead(inputs) - 1e9).relu().sum(1, keepdim=True)


def test_groups_and_examples_without_a_gradient_are_counted_over_the_whole_pass(make_classifier, make_examples):
    examples = [*make_examples(6, 3), Example("nothing", torch.zeros(3), 0)]
    adapter = make_classifier(Dead, examples)
    model = adapter.build_model()
    plan = plan_features(model)
    batches = iterate_features(adapter, model, examples, plan, batch_size=4)
    health = gradient_health((rows.squared_norms for rows in batches), plan)
    assert (health.examples, health.zero_examples, health.zero_groups) == (7, 1, ("dead", "unused"))
    groups, single = health.warnings()
    assert "2 parameter group(s) have no gradient in any of 7 examples: dead, unused." in groups
    assert "1 of 7 examples have no gradient" in single


def test_a_sound_pass_has_nothing_to_warn_of(network):
    adapter, model, examples = network
    plan = plan_features(model)
    batches = iterate_features(adapter, model, examples, plan, batch_size=4)
    assert gradient_health((rows.squared_norms for rows in batches), plan).warnings() == ()
    assert gradient_health([], plan).warnings() == ()
