from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from gradtrail.attribution.curvature.blocks import model_curvature
from gradtrail.attribution.curvature.kronecker import fit_eigen_basis
from gradtrail.attribution.features.plan import FeatureSettings, plan_features, plan_from_config
from gradtrail.attribution.gradients.capture import check_determinism, compute_features, iterate_features
from gradtrail.attribution.gradients.checks import check_capture
from gradtrail.attribution.gradients.fallback import AttributionWarning
from gradtrail.errors import ModelError
from gradtrail.nouns import Example

SETTINGS = (FeatureSettings(group_dimension=10**6), FeatureSettings(group_dimension=30))


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.recur, self.read = kind(3, 4, batch_first=True), nn.Linear(4, 5)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.read(self.recur(inputs)[0][:, -1])


class Packed(Recurrent):
    def forward(self, inputs: Tensor) -> Tensor:
        lengths = inputs.abs().sum(2).count_nonzero(1)
        packed, _ = self.recur(pack_padded_sequence(inputs, lengths, batch_first=True))
        return self.read(pad_packed_sequence(packed)[0][-1])


class Bare(nn.Module):
    """Parameters that belong to no layer: a matrix, a vector, a single number, and one that is never used."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(6, 8))
        self.scale = nn.Parameter(torch.tensor(1.5))
        self.unused = nn.Parameter(torch.ones(2))
        self.activate, self.read = nn.PReLU(8), nn.Linear(8, 5)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.read(self.activate(inputs @ self.matrix) * self.scale)


class SharedWithBias(nn.Module):
    """A weight that two layers share, with biases of their own, so that no rule may speak for it alone."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.read = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 5)
        self.second.weight = self.first.weight

    def forward(self, inputs: Tensor) -> Tensor:
        return self.read(self.second(self.first(inputs).tanh()).tanh())


class Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.utils.parametrizations.weight_norm(nn.Linear(6, 8))
        self.read = nn.Linear(8, 5)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.read(self.inner(inputs).tanh())


def assert_exact(adapter, model, examples: Sequence[Example], autograd_vectors: Callable[..., Tensor]) -> None:
    check_determinism(adapter, model, examples)
    for settings in SETTINGS:
        plan = plan_features(model, settings)
        assert plan.uncovered == ()
        found = compute_features(adapter, model, examples, plan).vectors
        expected = autograd_vectors(adapter, model.eval(), examples, plan)
        for group, columns in zip(plan.groups, plan.slices, strict=True):
            if group.name != "unused":
                assert expected[:, columns].norm() > 0
            allowed = 1e-4 * expected[:, columns].norm(dim=1) + 1e-12
            assert ((found - expected)[:, columns].norm(dim=1) <= allowed).all()
        check_capture(adapter, model, examples, plan)


@pytest.mark.parametrize(
    ("build", "shape"),
    [
        (lambda: Recurrent(nn.LSTM), (4, 3)),
        (Bare, (6,)),
        (SharedWithBias, (6,)),
        (Normed, (6,)),
    ],
    ids=["lstm", "bare parameters", "shared weight", "weight norm"],
)
def test_parameters_without_a_rule_get_the_gradient_of_autograd(
    build, shape, make_classifier, make_examples, autograd_vectors
):
    torch.manual_seed(0)
    examples = make_examples(5, *shape)
    model = build()
    with warnings.catch_warnings():
        warnings.simplefilter("error", AttributionWarning)
        assert_exact(make_classifier(lambda: model, examples), model, examples, autograd_vectors)


@pytest.mark.parametrize("kind", [nn.GRU, nn.RNN])
def test_where_torch_func_cannot_follow_examples_are_measured_one_at_a_time_with_a_warning(
    kind, make_classifier, make_examples, autograd_vectors
):
    torch.manual_seed(0)
    examples = make_examples(5, 4, 3)
    model = Packed(kind)
    with pytest.warns(AttributionWarning, match="recur.weight_ih_l0.*one example at a time"):
        assert_exact(make_classifier(lambda: model, examples), model, examples, autograd_vectors)


def test_a_weight_used_outside_its_layer_or_with_examples_elsewhere_is_measured_when_named(
    make_classifier, make_examples, autograd_vectors
):
    class TimeFirst(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.bypassed, self.outer = nn.Linear(3, 5), nn.Linear(5, 5), nn.Linear(5, 5)

        def forward(self, inputs: Tensor) -> Tensor:
            hidden = self.inner(inputs.transpose(0, 1)).tanh().mean(0)
            return self.outer(nn.functional.linear(hidden, self.bypassed.weight))

    examples = make_examples(4, 6, 3)
    adapter = make_classifier(TimeFirst, examples)
    model = adapter.build_model()
    plan = plan_features(model, FeatureSettings(fallback=False, fallback_for=("inner", "bypassed")))
    assert [group.modules for group in plan.groups] == [("outer",), (), (), (), ()]
    check_capture(adapter, model, examples, plan)
    found = compute_features(adapter, model, examples, plan).vectors
    expected = autograd_vectors(adapter, model, examples, plan)
    assert ((found - expected).norm(dim=1) / expected.norm(dim=1)).max() < 1e-4
    assert plan_from_config(model, plan.config()) == plan


def test_what_is_excluded_stays_uncovered_by_module_or_by_parameter():
    model = Bare()
    plan = plan_features(model, FeatureSettings(exclude=("activate", "scale")))
    assert plan.uncovered == ("scale", "activate.weight")
    assert plan_features(SharedWithBias(), FeatureSettings(exclude=("second",))).uncovered == (
        "first.weight",
        "second.bias",
    )


def test_fallback_off_is_part_of_the_configuration_and_on_is_not(perceptron):
    _, model, _ = perceptron
    on, off = plan_features(model), plan_features(model, FeatureSettings(fallback=False))
    assert "fallback" not in on.config()
    assert off.config()["fallback"] is False
    assert plan_from_config(model, off.config()) == off


def test_batches_are_cut_where_whole_gradients_would_not_fit(make_classifier, make_examples, monkeypatch):
    examples = make_examples(7, 6)
    adapter = make_classifier(Bare, examples)
    model = adapter.build_model()
    plan = plan_features(model)
    whole = compute_features(adapter, model, examples, plan).vectors
    monkeypatch.setattr("gradtrail.attribution.gradients.fallback.GRADIENT_BYTES", 500)
    assert torch.allclose(compute_features(adapter, model, examples, plan).vectors, whole, rtol=1e-5, atol=1e-7)
    (rows,) = iterate_features(adapter, model, examples[3:5], plan, batch_size=7)
    assert torch.allclose(rows.vectors, whole[3:5], rtol=1e-5, atol=1e-7)


def test_the_exact_curvature_holds_parameters_without_a_rule_too(make_classifier, make_examples, autograd_vectors):
    examples = make_examples(6, 6)
    adapter = make_classifier(Bare, examples)
    model = adapter.build_model()
    plan = plan_features(model, FeatureSettings(group_dimension=10**6))
    curvature = model_curvature(adapter, model, examples, plan, kind="ggn")
    place = [group.name for group in plan.groups].index("scale")
    batch = adapter.collate(examples)
    outputs = model(batch.inputs)
    factors = adapter.curvature_factors(outputs, batch)
    derivatives = (outputs.detach() - model.read.bias.detach()) / model.scale.detach()
    expected = (factors * derivatives).sum(2).square().sum(0).mean()
    assert torch.allclose(curvature.blocks[place].squeeze(), expected.double(), rtol=1e-4)


def test_an_eigenbasis_is_fitted_to_the_layers_that_have_factors_and_leaves_the_rest_random(
    make_classifier, make_examples
):
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.recur, self.attend = nn.LSTM(3, 6, batch_first=True), nn.MultiheadAttention(6, 2, batch_first=True)
            self.read = nn.Linear(6, 5)

        def forward(self, inputs: Tensor) -> Tensor:
            hidden = self.recur(inputs)[0]
            return self.read(self.attend(hidden, hidden, hidden)[0].sum(1))

    examples = make_examples(12, 4, 3)
    adapter = make_classifier(Mixed, examples)
    model = adapter.build_model()
    plan = plan_features(model, FeatureSettings(group_dimension=9))
    basis = fit_eigen_basis(adapter, model, examples, plan, kind="empirical")
    assert {key.split(":")[1] for key in basis.matrices} == {"attend", "attend.out_proj", "read"}
    check_capture(adapter, model, examples, replace(plan, basis=basis))


def test_flags_gradients_and_hooks_are_as_before_also_after_a_failure(make_classifier, make_examples):
    class Failing(Recurrent):
        def forward(self, inputs: Tensor) -> Tensor:
            if len(inputs) == 1:
                raise RuntimeError("alone")
            return super().forward(inputs)

    examples = make_examples(4, 4, 3)
    model = Failing(nn.GRU)
    model.recur.weight_ih_l0.grad = torch.ones_like(model.recur.weight_ih_l0)
    model.recur.bias_hh_l0.requires_grad_(False)
    adapter = make_classifier(lambda: model, examples)
    with pytest.raises(ModelError, match="cannot be measured one example at a time"):
        compute_features(adapter, model, examples, plan_features(model))
    assert torch.equal(model.recur.weight_ih_l0.grad, torch.ones_like(model.recur.weight_ih_l0))
    assert [name for name, parameter in model.named_parameters() if not parameter.requires_grad] == ["recur.bias_hh_l0"]
    assert all(parameter.grad is None for name, parameter in model.named_parameters() if name != "recur.weight_ih_l0")
    assert not any(module._forward_hooks for module in model.modules())


def test_a_model_that_overwrites_its_inputs_is_measured_right(make_classifier, make_examples, autograd_vectors):
    class Overwriting(Bare):
        clean = False

        def forward(self, inputs: Tensor) -> Tensor:
            return super().forward(inputs * 3 if self.clean else inputs.mul_(3))

    examples = make_examples(5, 6)
    adapter = make_classifier(Overwriting, examples)
    model = adapter.build_model()
    plan = plan_features(model)
    found = compute_features(adapter, model, examples, plan).vectors
    curved = model_curvature(adapter, model, examples, plan, kind="ggn").blocks
    model.clean = True
    expected = autograd_vectors(adapter, model, examples, plan)
    assert ((found - expected).norm(dim=1) / expected.norm(dim=1)).max() < 1e-4
    for block, clean in zip(curved, model_curvature(adapter, model, examples, plan, kind="ggn").blocks, strict=True):
        assert torch.allclose(block, clean, rtol=1e-4, atol=1e-8)
