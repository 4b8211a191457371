"""The search for a learning rate: up the ladder while the loss falls, down it until it does."""

import pytest
import torch
from torch import nn

from gradtrail.attribution.adapters.base import RegressionAdapter
from gradtrail.attribution.fidelity.further_training import FurtherTraining, Recipe
from gradtrail.attribution.fidelity.rate_search import search_rate
from gradtrail.errors import DivergenceError, ModelError
from gradtrail.nouns import Example

CURVATURE = 4.0


class Quadratic(RegressionAdapter):
    """Loss ½·4·(w − 1)² for every example: one step at a rate r makes (w − 1) (1 − 4r) times as large."""

    input_dtype = torch.float64

    def build_model(self):
        return nn.Linear(1, 1, bias=False).double()

    def training_data(self):
        return [Example(f"e{i}", torch.tensor([CURVATURE**0.5]), torch.tensor([CURVATURE**0.5])) for i in range(6)]


def _training(rate, *, weight=2.0, steps=(3, 9)):
    adapter = Quadratic()
    model = adapter.build_model()
    with torch.no_grad():
        model.weight.fill_(weight)
    recipe = Recipe(lambda parameters: torch.optim.SGD(parameters, lr=rate), steps, batch_size=6)
    data = adapter.training_data()
    return FurtherTraining(adapter, model, data, data[:1], recipe)


def _tried(found):
    return [each.learning_rate for each in found.tried]


def test_the_largest_rate_at_which_the_loss_falls_is_found_from_below_and_from_above():
    # The loss falls below 2 / 4 = 0.5.
    below = search_rate(_training, 0.05)
    assert (_tried(below), below.usable) == ([0.05, 0.2, 0.8], (0.2, 0.05))
    above = search_rate(_training, 6.0)
    assert (_tried(above), above.usable) == ([6.0, 1.5, 0.375], (0.375,))
    assert above.loss_before == pytest.approx(2.0)
    assert above.tried[-1].loss_after == pytest.approx(2.0 * 0.5**6)
    assert above.steps == 3


def test_a_rate_that_is_not_finite_is_passed_over_and_a_logged_one_never_raised():
    far = search_rate(_training, 1e200)
    assert far.tried[0].loss_after is None
    assert far.usable == ()
    assert _tried(search_rate(_training, 0.05, most_up=0)) == [0.05]


def test_at_a_minimum_the_least_rise_is_taken():
    found = search_rate(lambda rate: _training(rate, weight=1.0), 0.02)
    assert found.falling == ()
    assert found.usable[0] == min(_tried(found))


def test_a_loss_that_is_not_finite_from_the_start_is_refused():
    with pytest.raises(ModelError, match="not finite before any further training"):
        search_rate(lambda rate: _training(rate, weight=float("nan")), 0.02)


def test_no_more_steps_are_timed_than_the_shortest_amount():
    # Two steps stay finite at this rate, five do not.
    rate = 1e80
    assert _training(rate, steps=(1,)).cost().step >= 0
    with pytest.raises(DivergenceError):
        _training(rate, steps=(5,)).cost()
