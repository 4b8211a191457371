from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from gradtrail.attribution.adapters.base import Batch, ClassificationAdapter
from gradtrail.attribution.features.plan import FeatureSettings, plan_features, plan_from_config
from gradtrail.attribution.gradients.capture import compute_features, iterate_features
from gradtrail.errors import DataError, ModelError, StoreError, UsageError
from gradtrail.nouns import Example, Weighting, index_id

EXACT = FeatureSettings(group_dimension=10**6)
PROJECTED = FeatureSettings(group_dimension=36, seed=7)


def relative_error(found: Tensor, expected: Tensor) -> float:
    return ((found - expected).norm(dim=1) / expected.norm(dim=1)).max().item()


@pytest.mark.parametrize("settings", [EXACT, PROJECTED], ids=["exact", "projected"])
def test_features_are_the_projected_gradients_autograd_gives_one_example_at_a_time(network, settings, autograd_vectors):
    adapter, model, examples = network
    plan = plan_features(model, settings)
    rows = compute_features(adapter, model, examples, plan)
    assert rows.vectors.dtype == torch.float32
    assert relative_error(rows.vectors, autograd_vectors(adapter, model, examples, plan)) < 1e-4
    assert [group.exact for group in plan.groups].count(True) == (len(plan.groups) if settings is EXACT else 0)


def test_losses_norms_ids_and_attributes_stand_beside_the_vectors(convolutional):
    adapter, model, examples = convolutional
    plan = plan_features(model, PROJECTED)
    rows = compute_features(adapter, model, examples, plan)
    batch = adapter.collate(examples)
    assert torch.allclose(
        rows.losses, nn.functional.cross_entropy(model(batch.inputs), batch.targets, reduction="none").double()
    )
    squares = torch.stack([rows.vectors[:, columns].double().square().sum(1) for columns in plan.slices], 1)
    assert torch.equal(rows.squared_norms, squares)
    assert rows.example_ids == [example.example_id for example in examples]
    assert rows.attributes == {"source": [example.attributes["source"] for example in examples]}


def test_inner_products_summed_over_groups_are_those_of_the_whole_gradient(network):
    adapter, model, examples = network
    rows = compute_features(adapter, model, examples, plan_features(model, EXACT))
    gradients = []
    for example in examples:
        batch = adapter.collate([example])
        loss = adapter.losses(adapter.outputs(model, batch), batch).sum()
        gradients.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))]))
    expected = torch.stack(gradients) @ torch.stack(gradients).T
    assert torch.allclose(rows.vectors @ rows.vectors.T, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


@pytest.mark.parametrize("batch_size", [1, 5, 12])
def test_batch_size_and_order_change_no_row(network, batch_size):
    adapter, model, examples = network
    plan = plan_features(model, PROJECTED)
    whole = compute_features(adapter, model, examples, plan)
    parts = list(iterate_features(adapter, model, examples[::-1], plan, batch_size=batch_size))
    vectors = torch.cat([part.vectors for part in parts]).flip(0)
    assert [i for part in parts for i in part.example_ids][::-1] == whole.example_ids
    assert relative_error(vectors, whole.vectors) < 1e-5


def test_shards_measured_apart_join_to_the_whole(network):
    adapter, model, examples = network
    plan = plan_features(model, PROJECTED)
    whole = compute_features(adapter, model, examples, plan)
    for shard in range(3):
        rows = next(iterate_features(adapter, model, examples[shard::3], plan, batch_size=100))
        assert relative_error(rows.vectors, whole.vectors[shard::3]) < 1e-5


def test_a_map_style_data_set_is_read_by_its_length(perceptron):
    adapter, model, examples = perceptron

    class Endless:
        def __len__(self) -> int:
            return 3

        def __getitem__(self, position: int) -> Example:
            return examples[position % 3]

    rows = list(iterate_features(adapter, model, Endless(), plan_features(model), batch_size=2))
    assert [len(part.example_ids) for part in rows] == [2, 1]


def test_double_precision_models_keep_double_precision(make_classifier, make_examples, autograd_vectors):
    class Double(make_classifier):
        input_dtype = torch.float64

    examples = make_examples(4, 6)
    adapter = Double(lambda: nn.Linear(6, 5).double(), examples)
    model = adapter.build_model()
    plan = plan_features(model, FeatureSettings(dtype="float64"))
    rows = compute_features(adapter, model, examples, plan)
    assert rows.vectors.dtype == torch.float64
    assert relative_error(rows.vectors, autograd_vectors(adapter, model, examples, plan)) < 1e-12


def test_half_precision_models_are_projected_in_single_precision(make_classifier, make_examples):
    class Half(make_classifier):
        input_dtype = torch.bfloat16

    examples = make_examples(4, 6)
    adapter = Half(lambda: nn.Linear(6, 5).bfloat16(), examples)
    model = adapter.build_model()
    assert compute_features(adapter, model, examples, plan_features(model)).vectors.dtype == torch.float32


def test_two_layers_that_share_all_parameters_add_up_in_one_group(make_classifier, make_examples, autograd_vectors):
    def build() -> nn.Module:
        first, second = nn.Linear(5, 5), nn.Linear(5, 5)
        second.weight, second.bias = first.weight, first.bias
        return nn.Sequential(first, nn.Tanh(), second)

    examples = make_examples(6, 5)
    adapter = make_classifier(build, examples)
    model = adapter.build_model()
    plan = plan_features(model, EXACT)
    assert [group.modules for group in plan.groups] == [("0", "2")]
    assert plan.covered_parameters == 30
    rows = compute_features(adapter, model, examples, plan)
    assert relative_error(rows.vectors, autograd_vectors(adapter, model, examples, plan)) < 1e-4


def test_without_fallback_layers_that_share_only_a_weight_are_refused_until_both_are_left_out():
    first, second = nn.Linear(5, 5), nn.Linear(5, 5)
    second.weight = first.weight
    model = nn.Sequential(first, second, nn.Linear(5, 2))
    with pytest.raises(ModelError, match=r"0.weight is shared by 0, 1"):
        plan_features(model, FeatureSettings(fallback=False))
    with pytest.raises(ModelError, match="shared"):
        plan_features(model, FeatureSettings(exclude=("1",), fallback=False))
    plan = plan_features(model, FeatureSettings(exclude=("0", "1"), fallback=False))
    assert plan.uncovered == ("0.weight", "0.bias", "1.bias")


def test_without_fallback_parameters_without_a_rule_are_reported_as_uncovered():
    model = nn.Sequential(nn.Linear(4, 6), nn.PReLU(), nn.Linear(6, 2), nn.Bilinear(2, 2, 2))
    plan = plan_features(model, FeatureSettings(fallback=False))
    assert plan.uncovered == ("1.weight", "3.weight", "3.bias")
    assert (plan.covered_parameters, plan.total_parameters) == (44, 44 + 1 + 10)


def test_weights_derived_from_others_and_replaced_forwards_are_not_taken_for_covered():
    normed = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))
    patched = nn.Linear(4, 4)
    patched.forward = lambda inputs: inputs

    class Scaled(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input) * 2

    class Renamed(nn.Linear):
        pass

    model = nn.Sequential(normed, patched, Scaled(4, 4), Renamed(4, 4))
    plan = plan_features(model, FeatureSettings(fallback=False))
    assert [group.name for group in plan.groups] == ["3"]


def test_a_model_without_any_rule_is_refused():
    with pytest.raises(ModelError, match="No parameter of Sequential is covered") as caught:
        plan_features(nn.Sequential(nn.PReLU()), FeatureSettings(fallback=False))
    assert "docs/extending/layer-rule.md" in caught.value.remedy


def test_settings_that_make_no_sense_are_refused(perceptron):
    adapter, model, examples = perceptron
    with pytest.raises(UsageError, match="group_dimension"):
        plan_features(model, FeatureSettings(group_dimension=0))
    with pytest.raises(UsageError, match="batch size"):
        next(iterate_features(adapter, model, examples, plan_features(model), batch_size=0))


def test_the_configuration_makes_the_index_id_and_gives_the_plan_back(convolutional):
    _, model, _ = convolutional
    plan = plan_features(model, PROJECTED)
    assert plan_from_config(model, plan.config()) == plan
    assert index_id("c", "d", plan.config(), None) != index_id(
        "c", "d", plan_features(model, FeatureSettings(36, 8)).config(), None
    )
    older = {**plan.config(), "projection": {**plan.config()["projection"], "version": 0}}
    with pytest.raises(StoreError, match="other projection"):
        plan_from_config(model, older)


def test_the_configuration_is_spelt_out_because_the_id_of_every_index_depends_on_it():
    model = nn.Sequential(nn.Linear(7, 5), nn.Linear(5, 2, bias=False), nn.PReLU())
    weighting = Weighting("source", {"0": 2.0})
    plan = plan_features(model, FeatureSettings(16, 7, exclude=("2",), stored_weighting=weighting))
    assert plan.config() == {
        "measurement": "loss",
        "groups": [
            {"name": "0", "parameters": ["0.weight", "0.bias"], "dimension": 16, "exact": False, "projected": [4, 4]},
            {"name": "1", "parameters": ["1.weight"], "dimension": 10, "exact": True, "projected": [2, 5]},
        ],
        "group_dimension": 16,
        "exclude": ["2"],
        "stored_weighting": {"objective": "source", "group_weights": {"0": 2.0}},
        "projection": {"kind": "random", "seed": 7, "version": 1},
        "dtype": "float32",
    }
    assert plan_from_config(model, plan.config()) == plan


def test_one_number_may_be_kept_of_each_group(convolutional, autograd_vectors):
    adapter, model, examples = convolutional
    plan = plan_features(model, FeatureSettings(group_dimension=1))
    assert plan.dimension == len(plan.groups)
    rows = compute_features(adapter, model, examples, plan)
    assert relative_error(rows.vectors, autograd_vectors(adapter, model, examples, plan)) < 1e-4


def test_a_plan_of_another_model_is_refused(convolutional, perceptron):
    adapter, model, examples = convolutional
    with pytest.raises(ModelError, match="does not have in that form"):
        compute_features(adapter, model, examples, plan_features(perceptron[1]))


def test_an_example_with_nan_is_named_and_the_rest_can_go_on(convolutional):
    adapter, model, examples = convolutional
    plan = plan_features(model, PROJECTED)
    bad = Example("scan-bad", torch.full((1, 9, 8), torch.nan), 1)
    mixed = [*examples[:2], bad, *examples[2:]]
    with pytest.raises(DataError, match="scan-bad: loss is nan"):
        compute_features(adapter, model, mixed, plan)
    with pytest.raises(DataError, match="scan-bad"):
        list(iterate_features(adapter, model, mixed, plan, batch_size=4))
    reported: dict[str, str] = {}
    parts = list(iterate_features(adapter, model, mixed, plan, batch_size=3, on_non_finite=reported.__setitem__))
    assert reported == {"scan-bad": "loss is nan"}
    whole = compute_features(adapter, model, examples, plan)
    assert [i for part in parts for i in part.example_ids] == whole.example_ids
    assert relative_error(torch.cat([part.vectors for part in parts]), whole.vectors) < 1e-5
    assert [source for part in parts for source in part.attributes["source"]] == whole.attributes["source"]


def test_a_finite_loss_with_an_infinite_gradient_names_the_layer(make_classifier, make_examples):
    class Root(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.outer = nn.Linear(3, 4, bias=False), nn.Linear(4, 5)

        def forward(self, inputs: Tensor) -> Tensor:
            return self.outer(self.inner(inputs).abs().sqrt())

    examples = [*make_examples(2, 3), Example("at-the-kink", torch.zeros(3), 0)]
    adapter = make_classifier(Root, examples)
    model = adapter.build_model()
    with pytest.raises(DataError, match="at-the-kink: gradient not finite in inner"):
        compute_features(adapter, model, examples, plan_features(model))


def test_empty_batches_are_refused(perceptron):
    adapter, model, _ = perceptron
    with pytest.raises(DataError, match="without examples"):
        compute_features(adapter, model, [], plan_features(model))


def test_the_emitted_target_of_a_regression_is_the_prediction_itself(make_regressor):
    examples = [Example(str(i), torch.randn(3, dtype=torch.float64), [float(i)]) for i in range(4)]
    adapter = make_regressor(lambda: nn.Linear(3, 1).double(), examples)
    model = adapter.build_model()
    plan = plan_features(model, FeatureSettings(dtype="float64"))
    emitted = compute_features(adapter, model, examples, plan, target="emitted")
    inputs = torch.stack([example.inputs for example in examples])
    assert torch.allclose(emitted.vectors, -torch.cat([inputs, torch.ones(4, 1)], 1))
    label = compute_features(adapter, model, examples, plan, target="label")
    assert torch.equal(label.vectors, compute_features(adapter, model, examples, plan).vectors)


class Leaky(ClassificationAdapter):
    """An adapter whose losses fail on demand."""

    fail: Callable[[Tensor], Tensor] | None = None

    def __init__(self, model: nn.Module, examples: list[Example]) -> None:
        self._model, self._examples = model, examples

    def build_model(self) -> nn.Module:
        return self._model

    def training_data(self) -> list[Example]:
        return self._examples

    def losses(self, outputs: Tensor, batch: Batch) -> Tensor:
        losses = super().losses(outputs, batch)
        return self.fail(losses) if self.fail else losses


def hook_count(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._backward_hooks) for module in model.modules())


def raise_interrupt(losses: Tensor) -> Tensor:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    "fail", [None, raise_interrupt, torch.mean, torch.detach], ids=["success", "interrupt", "averaged", "detached"]
)
def test_hooks_modes_and_flags_are_as_before_whatever_happens(perceptron, fail):
    _, model, examples = perceptron
    model.train()
    model[0].eval()
    model[0].requires_grad_(False)
    seen_by_user: list[str] = []
    model[2].register_forward_hook(lambda *_: seen_by_user.append("called"))
    before = ([m.training for m in model.modules()], [p.requires_grad for p in model.parameters()], hook_count(model))
    adapter = Leaky(model, examples)
    adapter.fail = fail
    plan = plan_features(model)
    if fail is None:
        compute_features(adapter, model, examples, plan)
    else:
        with pytest.raises((KeyboardInterrupt, ModelError)):
            compute_features(adapter, model, examples, plan)
    after = ([m.training for m in model.modules()], [p.requires_grad for p in model.parameters()], hook_count(model))
    assert before == after
    assert all(parameter.grad is None for parameter in model.parameters())
    assert set(seen_by_user) == {"called"}


def test_features_can_be_computed_inside_no_grad(perceptron, autograd_vectors):
    adapter, model, examples = perceptron
    plan = plan_features(model)
    expected = autograd_vectors(adapter, model, examples, plan)
    with torch.no_grad():
        found = compute_features(adapter, model, examples, plan).vectors
    assert relative_error(found, expected) < 1e-4


def test_a_model_that_overwrites_its_activations_is_measured_right(make_classifier, make_examples, autograd_vectors):
    class Overwriting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.third = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 5)
            self.clean = False

        def forward(self, inputs: Tensor) -> Tensor:
            hidden = self.first(inputs.unsqueeze(1).expand(-1, 3, -1))
            added = self.second(hidden)
            if self.clean:
                return self.third((hidden * 2 + added.relu()).sum(1))
            hidden.mul_(2)
            hidden += added.relu_()
            return self.third(hidden.sum(1))

    examples = make_examples(6, 6)
    adapter = make_classifier(Overwriting, examples)
    model = adapter.build_model()
    plan = plan_features(model)
    found = compute_features(adapter, model, examples, plan).vectors
    model.clean = True
    assert relative_error(found, autograd_vectors(adapter, model, examples, plan)) < 1e-4


def test_a_layer_that_loses_the_batch_dimension_is_named_where_autograd_may_not_measure_it(
    make_classifier, make_examples
):
    class Routing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.outer = nn.Linear(2, 2), nn.Linear(6, 5)

        def forward(self, inputs: Tensor) -> Tensor:
            pairs = inputs.reshape(-1, 2)
            hidden, chosen = pairs.clone(), pairs[:, 0] > 0
            hidden[chosen] = self.inner(pairs[chosen])
            return self.outer(hidden.reshape(-1, 6))

    examples = make_examples(4, 6)
    adapter = make_classifier(Routing, examples)
    model = adapter.build_model()
    with pytest.raises(ModelError, match=r"input of layer inner has shape \(\d+, 2\) in a batch of 4") as caught:
        compute_features(adapter, model, examples, plan_features(model, FeatureSettings(fallback=False)))
    assert "fallback_for" in caught.value.remedy


def test_a_layer_that_is_never_called_is_not_taken_for_covered(make_classifier, make_examples):
    class Bypassing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.bypassed = nn.Linear(6, 6), nn.Linear(6, 5)

        def forward(self, inputs: Tensor) -> Tensor:
            return nn.functional.linear(self.used(inputs), self.bypassed.weight)

    examples = make_examples(4, 6)
    adapter = make_classifier(Bypassing, examples)
    model = adapter.build_model()
    with pytest.raises(ModelError, match="bypassed was never called"):
        compute_features(adapter, model, examples, plan_features(model, FeatureSettings(fallback=False)))
    plan = plan_features(model, FeatureSettings(exclude=("by*",)))
    assert compute_features(adapter, model, examples, plan).vectors.shape == (4, 42)
    assert plan.uncovered == ("bypassed.weight", "bypassed.bias")
