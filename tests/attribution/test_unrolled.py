"""Recurrent layers are measured step by step, as autograd measures torch's own kernels."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from gradtrail.attribution.features.plan import FeatureSettings, plan_features
from gradtrail.attribution.gradients.capture import compute_features
from gradtrail.attribution.gradients.checks import check_capture
from gradtrail.attribution.gradients.forward_passes import prepare
from gradtrail.attribution.gradients.tracked_model import track_model

LENGTH, INPUTS, WIDTH = 5, 3, 4


class Recurrent(nn.Module):
    """Class scores from all states and the last one, of a recurrent layer over numbers."""

    def __init__(self, layer: nn.RNNBase, packed: bool = False) -> None:
        super().__init__()
        self.layer, self.packed = layer, packed
        directions = 2 if layer.bidirectional else 1
        self.head = nn.Linear(directions * (layer.proj_size or WIDTH), 5)

    def forward(self, inputs: Tensor) -> Tensor:
        given = inputs if self.layer.batch_first else inputs.transpose(0, 1)
        if self.packed:
            lengths = torch.full((len(inputs),), LENGTH)
            given = pack_padded_sequence(given, lengths, batch_first=self.layer.batch_first)
        states, last = self.layer(given)
        if self.packed:
            return self.head(last[0][-1])
        own = states if self.layer.batch_first else states.transpose(0, 1)
        ends = last if isinstance(last, tuple) else (last,)
        return self.head(own.tanh().sum(1)) + sum(end.sum((0, 2)) for end in ends)[:, None]


LAYERS = {
    "lstm": lambda: nn.LSTM(INPUTS, WIDTH, batch_first=True),
    "lstm of two layers, both ways": lambda: nn.LSTM(INPUTS, WIDTH, num_layers=2, bidirectional=True),
    "lstm without biases": lambda: nn.LSTM(INPUTS, WIDTH, bias=False, batch_first=True),
    "gru": lambda: nn.GRU(INPUTS, WIDTH, batch_first=True),
    "gru of two layers, both ways": lambda: nn.GRU(INPUTS, WIDTH, num_layers=2, bidirectional=True, batch_first=True),
    "simple": lambda: nn.RNN(INPUTS, WIDTH, batch_first=True),
    "simple with relu": lambda: nn.RNN(INPUTS, WIDTH, nonlinearity="relu", dropout=0.5, num_layers=2),
}


@pytest.mark.parametrize("size", [1, LENGTH])
@pytest.mark.parametrize("build", LAYERS.values(), ids=LAYERS)
def test_a_recurrent_layer_is_measured_step_by_step(build, size, make_classifier, make_examples, autograd_vectors):
    torch.manual_seed(0)
    model, examples = Recurrent(build()).eval(), make_examples(6, LENGTH, INPUTS)
    adapter = make_classifier(lambda: model, examples)
    for settings in (FeatureSettings(group_dimension=10**6), FeatureSettings(group_dimension=9)):
        plan = plan_features(model, settings)
        tracked = track_model(adapter, model, plan)
        prepare(tracked, examples)
        assert not tracked.routes.by_autograd
        found = compute_features(adapter, model, examples[:size], plan).vectors
        wanted = autograd_vectors(adapter, model, examples[:size], plan)
        for columns in plan.slices:
            assert wanted[:, columns].norm() > 0
            assert (found - wanted)[:, columns].norm() <= 1e-5 * wanted[:, columns].norm()
        check_capture(adapter, model, examples, plan)


@pytest.mark.parametrize(
    ("layer", "packed"),
    [
        (lambda: nn.LSTM(INPUTS, WIDTH, proj_size=2, batch_first=True), False),
        (lambda: nn.LSTM(INPUTS, WIDTH, batch_first=True), True),
    ],
    ids=["projected states", "packed sequences"],
)
@pytest.mark.filterwarnings("ignore::gradtrail.errors.AttributionWarning")
def test_what_is_not_unrolled_is_measured_by_autograd(layer, packed, make_classifier, make_examples):
    torch.manual_seed(0)
    model, examples = Recurrent(layer(), packed).eval(), make_examples(6, LENGTH, INPUTS)
    adapter, plan = make_classifier(lambda: model, examples), plan_features(model)
    tracked = track_model(adapter, model, plan)
    prepare(tracked, examples)
    assert len(tracked.routes.by_autograd) == len(list(model.layer.parameters()))
    check_capture(adapter, model, examples, plan)
