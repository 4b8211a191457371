from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from gradtrail.attribution.adapters.base import ClassificationAdapter
from gradtrail.attribution.features.plan import FeatureSettings, plan_features
from gradtrail.attribution.gradients.capture import check_determinism
from gradtrail.attribution.gradients.checks import check_capture
from gradtrail.errors import AttributionWarning, ModelError
from gradtrail.nouns import Example


class AlwaysDropping(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return functional.dropout(super().forward(input), 0.5, training=True)


def test_sound_models_pass_in_either_mode_and_stay_in_it(network):
    adapter, model, examples = network
    for training in (True, False):
        model.train(training)
        check_determinism(adapter, model, examples)
        check_determinism(adapter, model, examples[:1])
        assert model.training is training


def test_dropout_and_batch_norm_that_obey_eval_mode_pass(make_classifier, make_examples):
    examples = make_examples(6, 6)
    layers = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, 5))
    check_determinism(make_classifier(lambda: layers, examples), layers.train(), examples)


def test_dropout_that_ignores_eval_mode_is_refused(make_classifier, make_examples):
    examples = make_examples(6, 6)
    model = AlwaysDropping(6, 5)
    with pytest.raises(ModelError, match="random even in eval mode") as caught:
        check_determinism(make_classifier(lambda: model, examples), model, examples)
    assert "dropout" in caught.value.remedy


def test_batch_norm_with_batch_statistics_is_refused(make_classifier, make_examples):
    examples = make_examples(6, 6)
    model = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6, track_running_stats=False), nn.Linear(6, 5))
    with pytest.raises(ModelError, match="example-005 runs in a batch but not alone") as caught:
        check_determinism(make_classifier(lambda: model, examples), model, examples)
    assert "BatchNorm" in caught.value.remedy


def test_convolutional_batch_statistics_are_named_as_coupling(make_classifier, make_examples):
    examples = make_examples(6, 1, 4, 4)
    norm = nn.BatchNorm2d(3, track_running_stats=False)
    model = nn.Sequential(nn.Conv2d(1, 3, 3), norm, nn.Flatten(), nn.Linear(12, 5))
    with pytest.raises(ModelError, match="example-005 gives another result alone") as caught:
        check_determinism(make_classifier(lambda: model, examples), model, examples)
    assert "BatchNorm" in caught.value.remedy


def test_losses_divided_by_the_batch_size_are_refused(make_classifier, make_examples):
    class Averaging(make_classifier):
        def losses(self, outputs, batch):
            return super().losses(outputs, batch) / len(outputs)

    examples = make_examples(6, 6)
    model = nn.Linear(6, 5)
    with pytest.raises(ModelError, match="divided by the number of examples"):
        check_determinism(Averaging(lambda: model, examples), model, examples)


def test_losses_averaged_over_the_batch_are_refused_even_in_the_right_shape(make_classifier, make_examples):
    class Averaging(make_classifier):
        def losses(self, outputs, batch):
            return super().losses(outputs, batch).mean().expand(len(outputs))

    examples = make_examples(6, 6)
    model = nn.Linear(6, 5)
    with pytest.raises(ModelError, match="the examples of a batch are coupled") as caught:
        check_determinism(Averaging(lambda: model, examples), model, examples)
    assert "averaged" in caught.value.remedy


def test_batch_norm_that_is_put_into_train_mode_by_forward_is_refused(make_classifier, make_examples):
    class Training(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.norm, self.outer = nn.Conv1d(1, 3, 3), nn.BatchNorm1d(3), nn.Linear(12, 5)

        def forward(self, inputs: Tensor) -> Tensor:
            return self.outer(self.norm.train()(self.inner(inputs)).flatten(1))

    examples = make_examples(6, 1, 6)
    adapter = make_classifier(Training, examples)
    model = adapter.build_model().eval()
    with pytest.raises(ModelError, match="another result alone than in a batch") as caught:
        check_determinism(adapter, model, examples)
    assert "BatchNorm" in caught.value.remedy
    assert not model.norm.training


def test_dropout_that_is_put_into_train_mode_by_forward_is_refused(make_classifier, make_examples):
    class Training(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.drop, self.outer = nn.Dropout(0.5), nn.Linear(6, 5)

        def forward(self, inputs: Tensor) -> Tensor:
            return self.outer(self.drop.train()(inputs))

    examples = make_examples(6, 6)
    adapter = make_classifier(Training, examples)
    model = adapter.build_model()
    with pytest.raises(ModelError, match="random even in eval mode"):
        check_determinism(adapter, model, examples)


def test_a_layer_that_cannot_be_measured_is_named_with_the_options_that_there_are(make_classifier, make_examples):
    class Borrowed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.outer = nn.Linear(6, 6), nn.Linear(6, 5)

        def forward(self, inputs: Tensor) -> Tensor:
            return self.outer(self.inner(inputs) @ self.inner.weight)

    examples = make_examples(6, 6)
    adapter = make_classifier(Borrowed, examples)
    model = adapter.build_model()
    with pytest.raises(ModelError, match="features of layer inner are not its gradient") as caught:
        check_capture(adapter, model, examples, plan_features(model, FeatureSettings(fallback=False)))
    assert "--fallback-for 'inner'" in caught.value.remedy
    assert "fallback_for = ('inner',)" in caught.value.remedy
    chosen = plan_features(model, FeatureSettings(fallback=False, fallback_for=("inner",)))
    assert check_capture(adapter, model, examples, chosen) < 1e-5


@pytest.mark.parametrize("reduce", [torch.mean, lambda losses: losses[:, None], lambda losses: losses.repeat(2)])
def test_losses_of_another_shape_are_refused(make_classifier, make_examples, reduce):
    class Reducing(make_classifier):
        def losses(self, outputs, batch):
            return reduce(super().losses(outputs, batch))

    examples = make_examples(6, 6)
    model = nn.Linear(6, 5)
    with pytest.raises(ModelError, match="the batch holds 6 examples") as caught:
        check_determinism(Reducing(lambda: model, examples), model, examples)
    assert "one loss per example" in caught.value.remedy


def test_an_example_that_is_not_finite_does_not_hide_or_fake_randomness(make_classifier, make_examples):
    examples = [*make_examples(3, 6), Example("nan", torch.full((6,), torch.nan), 0)]
    model = nn.Linear(6, 5)
    check_determinism(make_classifier(lambda: model, examples), model, examples)
    dropping = AlwaysDropping(6, 5)
    with pytest.raises(ModelError, match="random"):
        check_determinism(make_classifier(lambda: dropping, examples), dropping, examples)


def test_saturated_losses_do_not_look_random_or_coupled(make_classifier, make_examples):
    examples = [Example(e.example_id, e.inputs, 0) for e in make_examples(8, 6)]
    model = nn.Linear(6, 5)
    with torch.no_grad():
        model.bias[0] = 16.0
    check_determinism(make_classifier(lambda: model, examples), model, examples)


@pytest.mark.parametrize("settings", [FeatureSettings(36), FeatureSettings(10**6)], ids=["projected", "exact"])
def test_the_capture_check_passes_where_features_are_gradients(network, settings):
    adapter, model, examples = network
    check_capture(adapter, model, examples, plan_features(model, settings))


def test_the_capture_check_finds_a_weight_that_is_also_used_outside_its_layer(make_classifier, make_examples):
    class Reusing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.outer = nn.Linear(6, 6), nn.Linear(6, 5)

        def forward(self, inputs: Tensor) -> Tensor:
            return self.outer(functional.linear(self.inner(inputs).tanh(), self.inner.weight))

    examples = make_examples(4, 6)
    adapter = make_classifier(Reusing, examples)
    model = adapter.build_model()
    with pytest.raises(ModelError, match=r"layer inner are not its gradient for example example-00\d"):
        check_capture(adapter, model, examples, plan_features(model, FeatureSettings(fallback=False)))
    with pytest.warns(AttributionWarning, match="inner: measured by autograd, since inner is used in another way"):
        check_capture(adapter, model, examples, plan_features(model))


class Tagger(ClassificationAdapter):
    """A tag for each word, some of which count for nothing; the sum over them is divided by `counted(targets)`."""

    input_dtype = torch.int64

    def __init__(self, counted, tags):
        self.counted = counted
        words = torch.randint(0, 7, tags.shape, generator=torch.Generator().manual_seed(3))
        self.examples = [Example(f"text-{row}", words[row], tags[row]) for row in range(len(tags))]

    def build_model(self):
        torch.manual_seed(0)
        return nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 3))

    def training_data(self):
        return self.examples

    def losses(self, outputs, batch):
        each = functional.cross_entropy(outputs.transpose(1, 2), batch.targets, ignore_index=-1, reduction="none")
        return each.sum(1) / self.counted(batch.targets)


def _tags(silent):
    tags = torch.arange(30).reshape(6, 5) % 3
    tags[silent] = -1
    tags[2, 3:] = -1
    return tags


@pytest.mark.parametrize("silent", [[0, 5], [0, 1, 4, 5], []])
def test_losses_divided_by_what_counts_in_the_batch_are_refused_whichever_examples_have_none(silent):
    adapter = Tagger(lambda targets: (targets >= 0).sum().clamp(min=1), _tags(silent))
    with pytest.raises(ModelError, match="the examples of a batch are coupled") as caught:
        check_determinism(adapter, adapter.build_model(), adapter.examples)
    assert "counts" in caught.value.remedy


def test_losses_divided_by_what_counts_in_each_example_pass_with_the_rounding_as_figure():
    adapter = Tagger(lambda targets: (targets >= 0).sum(1).clamp(min=1), _tags([0, 5]))
    model = adapter.build_model()
    assert check_determinism(adapter, model, adapter.examples) < 1e-6
    assert check_capture(adapter, model, adapter.examples, plan_features(model)) < 1e-5


def test_an_example_that_makes_others_not_finite_is_coupled_with_them(make_classifier, make_examples):
    class Centred(nn.Linear):
        def forward(self, inputs: Tensor) -> Tensor:
            return super().forward(inputs) - 0 * inputs.sum()

    examples = [*make_examples(3, 6), Example("infinite", torch.full((6,), torch.inf), 0), *make_examples(2, 6, seed=1)]
    model = Centred(6, 5)
    with pytest.raises(ModelError, match="the examples of a batch are coupled"):
        check_determinism(make_classifier(lambda: model, examples), model, examples)


def test_the_capture_check_needs_an_example_with_a_finite_gradient(make_classifier, make_examples):
    broken = [Example(f"nan-{row}", torch.full((6,), torch.nan), 0) for row in range(9)]
    model = nn.Linear(6, 5)
    adapter = make_classifier(lambda: model, broken)
    with pytest.raises(ModelError, match="None of 9 examples has a finite gradient"):
        check_capture(adapter, model, broken, plan_features(model))
    check_capture(adapter, model, [*broken, *make_examples(1, 6)], plan_features(model))


def test_the_capture_check_finds_examples_that_are_coupled_in_the_gradient_alone(make_classifier, make_examples):
    class Leaking(nn.Module):
        def forward(self, outputs: Tensor) -> Tensor:
            return outputs + outputs.sum(0) - outputs.sum(0).detach()

    examples = make_examples(9, 6)
    model = nn.Sequential(nn.Linear(6, 5), Leaking())
    adapter = make_classifier(lambda: model, examples)
    check_determinism(adapter, model, examples)
    with pytest.raises(ModelError, match="are not its gradient") as caught:
        check_capture(adapter, model, examples, plan_features(model, FeatureSettings(fallback=False)))
    assert "coupled" in caught.value.remedy


class RoundedAtZero(nn.Module):
    """ReLU at numbers so small that float32 loses them in a batch, and keeps them alone."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 4, bias=False), nn.Linear(4, 5)
        nn.init.constant_(self.first.weight, 1e-9)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.first(inputs.abs())
        return self.last(functional.relu((hidden + 1) - 1 if len(inputs) > 1 else hidden))


def test_a_relu_that_rounding_switches_is_compared_in_double_precision(make_classifier, make_examples):
    examples, model = make_examples(6, 6), RoundedAtZero()
    plan = plan_features(model, FeatureSettings(fallback=False))
    assert check_capture(make_classifier(lambda: model, examples), model, examples, plan) < 1e-5
