"""Parameters that a module uses by itself are measured where they meet the examples, as autograd measures them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from gradtrail.attribution.features.plan import FeatureSettings, plan_features
from gradtrail.attribution.gradients.capture import compute_features
from gradtrail.attribution.gradients.checks import check_capture
from gradtrail.attribution.gradients.forward_passes import prepare
from gradtrail.attribution.gradients.tracked_model import track_model

LENGTH, WIDTH = 4, 6


class Tokens(nn.Module):
    """A class token, positions, and a scale of features, as vision transformers have them."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 1, WIDTH))
        self.positions = nn.Parameter(torch.randn(1, LENGTH + 1, WIDTH))
        self.scale = nn.Parameter(torch.rand(WIDTH) + 0.5)

    def forward(self, hidden: Tensor) -> Tensor:
        hidden = torch.cat([self.token.expand(len(hidden), -1, -1), hidden], dim=1)
        return torch.tanh(hidden + self.positions) * self.scale


class Scaled(nn.Module):
    """A scale of channels that stand before the positions, and one that works in place."""

    def __init__(self) -> None:
        super().__init__()
        self.gamma, self.shift = nn.Parameter(torch.rand(LENGTH) + 0.5), nn.Parameter(torch.rand(WIDTH))

    def forward(self, hidden: Tensor) -> Tensor:
        return torch.tanh(hidden).mul(self.gamma.reshape(1, -1, 1)).add_(self.shift)


class Computed(nn.Module):
    """A decay, of which the model learns the logarithm."""

    def __init__(self) -> None:
        super().__init__()
        self.logarithm = nn.Parameter(torch.randn(WIDTH))

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden * -torch.exp(self.logarithm.float())[None, None, :]


class ShiftedPositions(nn.Embedding):
    """Positions that are looked up two rows further on."""

    def forward(self, hidden: Tensor) -> Tensor:
        numbers = torch.arange(hidden.shape[1]).expand(len(hidden), -1)
        return hidden + super().forward(numbers + 2)


class PositionsFirst(nn.Module):
    """Examples are the second dimension, where a scale meets them."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.rand(WIDTH) + 0.5)

    def forward(self, hidden: Tensor) -> Tensor:
        return (hidden.transpose(0, 1) * self.scale).transpose(0, 1)


class RepeatedForPositions(nn.Module):
    """A scale of features that is repeated for every position, of which there may be as many as examples."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.rand(1, WIDTH) + 0.5)

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden * self.scale.expand(hidden.shape[1], -1)


class Summed(nn.Module):
    """A product with a matrix, which is no way that is known."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(WIDTH, WIDTH))

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden @ self.matrix


def around(layer):
    width = layer(torch.zeros(1, LENGTH, WIDTH)).numel()
    return nn.Sequential(nn.Linear(WIDTH, WIDTH), layer, nn.Tanh(), nn.Flatten(), nn.Linear(width, 5)).eval()


KINDS = {
    "class token and positions": (Tokens, 3),
    "scales": (Scaled, 2),
    "computed from the parameter": (Computed, 1),
    "looked up": (lambda: ShiftedPositions(LENGTH + 2, WIDTH), 1),
    "positions first": (PositionsFirst, 0),
    "repeated for positions": (RepeatedForPositions, 0),
    "a product": (Summed, 0),
}


@pytest.mark.parametrize("size", [1, LENGTH])
@pytest.mark.parametrize(("build", "by_use"), KINDS.values(), ids=KINDS)
def test_a_parameter_is_measured_where_it_meets_the_examples_or_by_autograd(
    build, by_use, size, make_classifier, make_examples, autograd_vectors
):
    torch.manual_seed(0)
    model, examples = around(build()), make_examples(6, LENGTH, WIDTH)
    adapter = make_classifier(lambda: model, examples)
    for settings in (FeatureSettings(group_dimension=10**6), FeatureSettings(group_dimension=9)):
        plan = plan_features(model, settings)
        tracked = track_model(adapter, model, plan)
        prepare(tracked, examples)
        bare = [place for place, group in enumerate(plan.groups) if not group.modules]
        assert len(tracked.routes.by_use) == by_use
        assert tracked.routes.by_use | tracked.routes.by_autograd == set(bare)
        found = compute_features(adapter, model, examples[:size], plan).vectors
        wanted = autograd_vectors(adapter, model, examples[:size], plan)
        for columns in plan.slices:
            assert (found - wanted)[:, columns].norm() <= 1e-5 * wanted[:, columns].norm()
        check_capture(adapter, model, examples, plan)


def test_a_parameter_that_a_batch_does_not_use_is_measured_by_autograd(make_classifier, make_examples):
    class OnlyLarge(Computed):
        def forward(self, hidden: Tensor) -> Tensor:
            return super().forward(hidden) if len(hidden) < 3 else functional.relu(hidden)

    torch.manual_seed(0)
    model, examples = around(OnlyLarge()), make_examples(6, LENGTH, WIDTH)
    adapter, plan = make_classifier(lambda: model, examples), plan_features(model)
    with pytest.warns(UserWarning, match="1.logarithm is used in another way than before"):
        compute_features(adapter, model, examples, plan)
