from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from gradtrail import CausalLMAdapter, ClassificationAdapter, Example, RegressionAdapter
from gradtrail.attribution.adapters.base import Batch
from gradtrail.attribution.features.plan import plan_features
from gradtrail.attribution.fidelity.training_loop import Recipe, TrainingLoop
from gradtrail.attribution.gradients.capture import compute_features
from gradtrail.attribution.gradients.checks import check_capture, check_determinism
from gradtrail.attribution.gradients.precision import rounding_of_gradients
from gradtrail.errors import ModelError

HALVES = [torch.bfloat16, torch.float16]


class Adapted:
    def __init__(self, dtype=torch.float32, build=lambda: nn.Linear(40, 40)):
        self.dtype, self.build = dtype, build

    def build_model(self):
        torch.manual_seed(0)
        return self.build().to(self.dtype).eval()

    def training_data(self):
        return [Example(str(row), torch.randn(40), torch.randn(40)) for row in range(4)]


class Classifier(Adapted, ClassificationAdapter):
    def outputs(self, model, batch):
        return model(batch.inputs.to(self.dtype))


class Regressor(Adapted, RegressionAdapter):
    def outputs(self, model, batch):
        return model(batch.inputs.to(self.dtype))


class Language(Adapted, CausalLMAdapter):
    def build_model(self):
        torch.manual_seed(0)
        return nn.Sequential(nn.Embedding(60, 12), nn.Linear(12, 60)).to(self.dtype).eval()


def _relative(found, wanted):
    assert found.dtype == torch.float32
    return ((found.double() - wanted) / wanted).abs().max().item()


@pytest.mark.parametrize("dtype", HALVES)
def test_every_loss_is_summed_in_float32_whatever_the_model_runs_in(dtype):
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(0, 60, (3, 900), generator=generator)
    language = Language(dtype)
    batch = language.collate([Example(str(row), tokens[row], None) for row in range(3)])
    with torch.no_grad():
        logits = language.outputs(language.build_model(), batch)
    wanted = functional.cross_entropy(logits.double().transpose(1, 2), tokens[:, 1:], reduction="none").sum(1)
    assert _relative(language.losses(logits, batch), wanted) < 1e-5

    logits = torch.randn(5, 40, generator=generator).mul(20).to(dtype)
    labels = torch.randint(0, 40, (5,), generator=generator)
    wanted = functional.cross_entropy(logits.double(), labels, reduction="none")
    assert _relative(Classifier(dtype).losses(logits, Batch(None, labels)), wanted) < 1e-5

    wanted = 0.5 * (logits.double() - 0.125).square().sum(1)
    assert _relative(Regressor(dtype).losses(logits, Batch(None, torch.full((5, 40), 0.125))), wanted) < 1e-5
    assert _relative(Regressor(dtype).emitted_losses(logits, Batch(None, None)), -logits.double().sum(1)) < 1e-5


def test_losses_that_a_user_wrote_are_given_outputs_in_float32_wherever_they_are_measured():
    seen = set()

    class Own(Classifier):
        def losses(self, outputs, batch):  # noqa: ARG002 (the interface)
            seen.add(outputs.dtype)
            return outputs.square().sum(1)

    adapter = Own(torch.bfloat16)
    model, examples = adapter.build_model(), [Example(str(row), torch.randn(40), 0) for row in range(4)]
    check_determinism(adapter, model, examples)
    check_capture(adapter, model, examples, plan_features(model))
    compute_features(adapter, model, examples, plan_features(model))
    recipe = Recipe(lambda parameters: torch.optim.SGD(parameters, lr=0.01), (1,), 2)
    loop = TrainingLoop(adapter, examples, examples, recipe, None, "cpu", "nominal")
    loop.run(model, 0)
    assert seen == {torch.float32}


@pytest.mark.parametrize("dtype", HALVES)
def test_the_rounding_of_gradients_is_measured_against_the_same_weights_in_float32(dtype):
    def build():
        return nn.Sequential(nn.Linear(40, 40), nn.Tanh(), nn.Linear(40, 40))

    half, whole = Classifier(dtype, build), Classifier(torch.float32, build)
    model, exact = half.build_model(), whole.build_model()
    exact.load_state_dict({name: value.float() for name, value in model.state_dict().items()})
    examples = [Example(str(row), torch.randn(40).to(dtype).float(), row) for row in range(7)]

    errors = []
    for example in examples:
        gradients = []
        for adapter, each in ((half, model), (whole, exact)):
            batch = adapter.collate([example])
            loss = adapter.losses(adapter.outputs(each, batch), batch).sum()
            found = torch.autograd.grad(loss, list(each.parameters()))
            gradients.append(torch.cat([part.flatten().double() for part in found]))
        errors.append(((gradients[0] - gradients[1]).norm() / gradients[1].norm()).item())
    plan = plan_features(model)
    found = rounding_of_gradients(whole_run(half), model, examples, plan)
    assert 0.2 < found / sorted(errors)[3] < 5
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    assert rounding_of_gradients(whole, exact, examples, plan_features(exact)) is None


def test_a_model_whose_gradients_half_precision_drowns_is_refused():
    class Cancelling(nn.Linear):
        def forward(self, inputs):
            shifted = super().forward(inputs) + 1000
            return (shifted - 1000).square()

    adapter = whole_run(Classifier(torch.bfloat16, lambda: Cancelling(40, 40)))
    model = adapter.build_model()
    examples = [Example(str(row), torch.randn(40), row) for row in range(5)]
    with pytest.raises(ModelError, match=r"rounding moves the gradients of Cancelling by .*% .*at most 20%"):
        rounding_of_gradients(adapter, model, examples, plan_features(model))


def whole_run(adapter):
    """The adapter with inputs in the type of whichever model it runs."""

    def outputs(model, batch):
        return model(batch.inputs.to(next(model.parameters()).dtype))

    adapter.outputs = outputs
    return adapter
