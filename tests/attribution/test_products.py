from __future__ import annotations

import threading

import pytest
import torch
from torch import nn
from torch.nn import functional

from gradtrail.attribution.adapters.base import ClassificationAdapter
from gradtrail.attribution.features.plan import FeatureSettings, plan_features
from gradtrail.attribution.gradients import tracked_model
from gradtrail.attribution.gradients.capture import compute_features
from gradtrail.attribution.layers import forward_overrides
from gradtrail.attribution.numerics.products import faster_products, frozen_linear, has_faster_products
from gradtrail.nouns import Example

SHAPES = [(256, 512, 512), (64, 1024, 32), (3, 1000, 7), (1, 300, 300), (2000, 17, 5)]


def setting() -> str:
    return torch.backends.mkldnn.matmul.fp32_precision


def matrices(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize(("rows", "inner", "columns"), SHAPES)
def test_faster_products_are_as_precise_as_float32_is(rows, inner, columns):
    left, right = matrices(rows, inner), matrices(inner, columns)
    exact = left.double() @ right.double()
    with faster_products():
        found = left @ right
        turned = (right.T.contiguous() @ left.T).T
    assert (found - exact).norm() / exact.norm() < 2e-6
    assert (turned - exact).norm() / exact.norm() < 2e-6


def test_torchs_setting_is_as_it_was_also_after_an_exception_and_inside_of_another():
    before = setting()
    with faster_products():
        within = setting()
        with faster_products():
            assert setting() == within
        assert setting() == within
    assert (within != before) == has_faster_products()
    with pytest.raises(ZeroDivisionError), faster_products():
        raise ZeroDivisionError
    assert setting() == before


def test_threads_that_overlap_leave_the_setting_as_it_was():
    before, first_is_in, second_is_in = setting(), threading.Event(), threading.Event()

    def first() -> None:
        with faster_products():
            first_is_in.set()
            second_is_in.wait()

    worker = threading.Thread(target=first)
    worker.start()
    first_is_in.wait()
    with faster_products():
        second_is_in.set()
        worker.join()
        assert (setting() != before) == has_faster_products()
    assert setting() == before


@pytest.mark.parametrize("biased", [True, False])
def test_a_frozen_linear_layer_gives_its_inputs_the_gradients_of_torchs_own(biased):
    inputs, weight, bias = matrices(32, 5, 128), matrices(96, 128), matrices(96) if biased else None
    found, expected = inputs.clone().requires_grad_(), inputs.clone().requires_grad_()
    ours, torchs = frozen_linear(found, weight, bias), functional.linear(expected, weight, bias)
    assert (ours - torchs).norm() / torchs.norm() < 1e-6
    cotangents = matrices(32, 5, 96)
    ours.backward(cotangents)
    torchs.backward(cotangents)
    assert (found.grad - expected.grad).norm() / expected.grad.norm() < 1e-6


def test_a_weight_that_asks_for_a_gradient_gets_it():
    weight = matrices(6, 4).requires_grad_()
    frozen_linear(matrices(3, 4), weight, None).sum().backward()
    assert torch.equal(weight.grad, matrices(3, 4).sum(0).expand(6, 4))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_types_are_multiplied_as_torch_does(dtype):
    inputs, weight = matrices(8, 16).to(dtype), matrices(4, 16).to(dtype)
    assert torch.equal(frozen_linear(inputs, weight, None), functional.linear(inputs, weight))


def test_autocast_still_lowers_the_precision():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert frozen_linear(matrices(8, 16), matrices(4, 16), None).dtype == torch.bfloat16


class Network(nn.Module):
    """What a stand-in meets: calls by name, two of them, operations in place, attention, and shared weights."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(128, 256)
        self.again = nn.Linear(256, 256, bias=False)
        self.attention = nn.MultiheadAttention(256, 4, batch_first=True)
        self.last = nn.Linear(256, 128)
        self.tied = nn.Linear(128, 256, bias=False)
        self.tied.weight = self.first.weight

    def forward(self, inputs):
        hidden = self.first(input=inputs).relu_()
        hidden = self.again(self.again(hidden)).relu_()
        hidden = hidden + self.attention(hidden, hidden, hidden, need_weights=False)[0]
        return self.tied(self.last(hidden)).mean(1)


class Adapter(ClassificationAdapter):
    def build_model(self):
        return Network()

    def training_data(self):
        return [Example(f"e{number}", matrices(6, 128) * (1 + number), number % 7) for number in range(16)]


def test_features_are_the_same_whichever_products_make_them(monkeypatch):
    adapter = Adapter()
    torch.manual_seed(0)
    model = adapter.build_model().eval()
    plan = plan_features(model, FeatureSettings(group_dimension=64))
    found = {}
    for faster in (True, False):
        monkeypatch.setattr(forward_overrides, "has_faster_products", lambda faster=faster: faster)
        assert len(tracked_model.track_model(adapter, model, plan).affine) == (5 if faster else 0)
        found[faster] = compute_features(adapter, model, adapter.training_data(), plan).vectors
        assert not any("forward" in vars(layer) for layer in model.modules())
    assert ((found[True] - found[False]).norm(dim=1) / found[False].norm(dim=1)).max() < 1e-5
