from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor, nn

from gradtrail.attribution.adapters.base import ClassificationAdapter, ModelAdapter
from gradtrail.attribution.curvature.blocks import (
    BlockCurvature,
    default_curvature_kind,
    empirical_curvature,
    model_curvature,
)
from gradtrail.attribution.curvature.damping import Damping
from gradtrail.attribution.curvature.kronecker import fit_eigen_basis
from gradtrail.attribution.features.plan import FeatureSettings, plan_features
from gradtrail.attribution.gradients.capture import compute_features, iterate_features
from gradtrail.attribution.methods.rules import prepare_queries
from gradtrail.attribution.methods.spec import MethodSpec
from gradtrail.attribution.scoring.passes import score
from gradtrail.errors import DataError, ModelError, StoreError, UsageError
from gradtrail.nouns import Example

EXACT = FeatureSettings(group_dimension=10**6, dtype="float64")


class Silent(ModelAdapter):
    """Neither samples targets nor knows the Hessian of its loss."""

    def build_model(self) -> nn.Module:
        return nn.Linear(6, 5)

    def training_data(self) -> list[Example]:
        return []

    def losses(self, outputs, _batch):
        return outputs.square().sum(1)

    def emitted(self, outputs, _batch):
        return [""] * len(outputs)


def relative(left: Tensor, right: Tensor) -> float:
    return ((left - right).norm() / right.norm()).item()


def test_ggn_is_the_hessian_of_the_loss_for_a_linear_classifier(make_classifier, make_examples):
    class Double(make_classifier):
        input_dtype = torch.float64

    examples = make_examples(7, 3)
    adapter = Double(lambda: nn.Linear(3, 5).double(), examples)
    model = adapter.build_model()
    plan = plan_features(model, EXACT)
    batch = adapter.collate(examples)

    def mean_loss(flat: Tensor) -> Tensor:
        joined = flat.reshape(5, 4)
        logits = batch.inputs @ joined[:, :3].T + joined[:, 3]
        return nn.functional.cross_entropy(logits, batch.targets)

    flat = torch.cat([model.weight, model.bias[:, None]], 1).detach().flatten()
    hessian = torch.autograd.functional.hessian(mean_loss, flat)
    for batch_size in (2, 7):
        ggn = model_curvature(adapter, model, examples, plan, kind="ggn", batch_size=batch_size)
        assert relative(ggn.blocks[0], hessian) < 1e-10
    assert ggn.example_count == 7


def test_the_sampled_fisher_tends_to_the_ggn_and_is_repeatable(convolutional):
    adapter, model, examples = convolutional
    plan = plan_features(model, FeatureSettings(group_dimension=36))
    ggn = model_curvature(adapter, model, examples, plan, kind="ggn", batch_size=5)
    draws = [model_curvature(adapter, model, examples, plan, kind="fisher", seed=seed) for seed in range(100)]
    for position, block in enumerate(ggn.blocks):
        mean = torch.stack([draw.blocks[position] for draw in draws]).mean(0)
        assert relative(mean, block) < 0.15
    again = model_curvature(adapter, model, examples, plan, kind="fisher", seed=3)
    assert all(torch.equal(left, right) for left, right in zip(again.blocks, draws[3].blocks, strict=True))
    assert not torch.equal(draws[3].blocks[0], draws[4].blocks[0])


def test_the_fisher_of_a_regression_tends_to_its_ggn(make_regressor):
    generator = torch.Generator().manual_seed(0)
    examples = [
        Example(str(i), torch.randn(3, generator=generator, dtype=torch.float64), [0.0, 1.0]) for i in range(2000)
    ]
    adapter = make_regressor(lambda: nn.Linear(3, 2).double(), examples)
    model = adapter.build_model()
    plan = plan_features(model, EXACT)
    ggn = model_curvature(adapter, model, examples, plan, kind="ggn")
    fisher = model_curvature(adapter, model, examples, plan, kind="fisher")
    assert relative(fisher.blocks[0], ggn.blocks[0]) < 0.1
    inputs = torch.cat([torch.stack([e.inputs for e in examples]), torch.ones(2000, 1)], 1)
    expected = torch.kron(torch.eye(2, dtype=torch.float64), inputs.T @ inputs / 2000)
    assert relative(ggn.blocks[0], expected) < 1e-12


def test_the_empirical_curvature_streams(convolutional):
    adapter, model, examples = convolutional
    plan = plan_features(model, FeatureSettings(group_dimension=36))
    whole = compute_features(adapter, model, examples, plan)
    streamed = empirical_curvature(iterate_features(adapter, model, examples, plan, batch_size=5), plan)
    assert (streamed.kind, streamed.example_count) == ("empirical", 12)
    for block, columns in zip(streamed.blocks, plan.slices, strict=True):
        part = whole.vectors[:, columns].double()
        assert relative(block, part.T @ part / 12) < 1e-5


def ridge_scores(adapter, model, examples, outputs, plan, curvature, ridge) -> Tensor:
    rows = compute_features(adapter, model, examples, plan)
    queries = prepare_queries(
        MethodSpec("influence", damping=Damping(0.0, ridge / len(examples))),
        compute_features(adapter, model, outputs, plan),
        plan,
        curvature=curvature,
    )
    result = score(queries, lambda: [rows], top_k=len(examples))
    by_id = [dict(up + down) for up, down in zip(result.proponents, result.opponents, strict=True)]
    return torch.tensor([[found.get(e.example_id, 0.0) for e in examples] for found in by_id], dtype=torch.float64)


@pytest.mark.parametrize("ridge", [0.5, 20.0])
def test_influence_with_ggn_agrees_with_exact_leave_one_out_on_ridge_regression(make_regressor, ridge):
    generator = torch.Generator().manual_seed(5)
    count, width = 300, 5
    inputs = torch.randn(count + 20, width, generator=generator, dtype=torch.float64)
    truth = torch.randn(width, generator=generator, dtype=torch.float64)
    targets = inputs @ truth + torch.randn(count + 20, generator=generator, dtype=torch.float64)
    everything = [Example(f"{i:03d}", inputs[i], [targets[i].item()]) for i in range(count + 20)]
    examples, outputs = everything[:count], everything[count:]

    def solve(kept: Tensor) -> Tensor:
        normal = inputs[kept].T @ inputs[kept] + ridge * torch.eye(width, dtype=torch.float64)
        return torch.linalg.solve(normal, inputs[kept].T @ targets[kept])

    def query_losses(weights: Tensor) -> Tensor:
        return 0.5 * (targets[count:] - inputs[count:] @ weights).square()

    rows = torch.arange(count)
    weights = solve(rows)
    # Leaving the example out raises the loss of an output it supports.
    effects = torch.stack([query_losses(solve(rows[rows != left])) - query_losses(weights) for left in range(count)], 1)

    adapter = make_regressor(lambda: nn.Linear(width, 1, bias=False).double(), examples)
    model = adapter.build_model()
    with torch.no_grad():
        model.weight.copy_(weights[None])
    plan = plan_features(model, EXACT)
    correlations = {}
    for curvature in (
        model_curvature(adapter, model, examples, plan, kind="ggn"),
        empirical_curvature(iterate_features(adapter, model, examples, plan, batch_size=64), plan),
    ):
        found = ridge_scores(adapter, model, examples, outputs, plan, curvature, ridge)
        pairs = [torch.corrcoef(torch.stack([left, right]))[0, 1] for left, right in zip(found, effects, strict=True)]
        correlations[curvature.kind] = torch.stack(pairs).mean().item()
        if curvature.kind == "ggn":
            slope = (found * effects).sum() / found.square().sum() * count
            assert slope.item() == pytest.approx(1, rel=0.05)
    print("mean correlation with exact leave-one-out, ridge", ridge, correlations)
    assert correlations["ggn"] >= 0.99


def test_curvature_survives_a_safetensors_file(tmp_path, perceptron):
    from safetensors.torch import load_file, save_file

    adapter, model, examples = perceptron
    plan = plan_features(model, FeatureSettings(group_dimension=16))
    fitted = model_curvature(adapter, model, examples, plan, kind="fisher")
    save_file(fitted.to_tensors(), tmp_path / "curvature.safetensors")
    tensors = load_file(tmp_path / "curvature.safetensors")
    back = BlockCurvature.from_tensors(tensors, kind="fisher")
    assert (back.kind, back.example_count) == ("fisher", 12)
    assert all(torch.equal(left, right) for left, right in zip(back.blocks, fitted.blocks, strict=True))
    with pytest.raises(StoreError, match="of kind fisher, not ggn"):
        BlockCurvature.from_tensors(tensors, kind="ggn")
    with pytest.raises(StoreError, match="instead of blocks"):
        BlockCurvature.from_tensors({name: t for name, t in tensors.items() if name != "block.0"})


def test_the_default_kind_follows_what_the_adapter_can_do(perceptron):
    assert default_curvature_kind(perceptron[0]) == "fisher"
    assert default_curvature_kind(Silent()) == "empirical"


@pytest.mark.parametrize("kind", ["fisher", "ggn"])
def test_kinds_the_adapter_does_not_support_are_refused_with_the_remedy(make_examples, kind):
    adapter = Silent()
    model = adapter.build_model()
    with pytest.raises(ModelError, match=f"which curvature `{kind}` needs") as caught:
        model_curvature(adapter, model, make_examples(3, 6), plan_features(model), kind=kind)
    assert "empirical" in caught.value.remedy


class Fivefold(ClassificationAdapter):
    """Losses of its own, and what its parent says about others."""

    build_model, training_data = Silent.build_model, Silent.training_data

    def losses(self, outputs, batch):
        return 5 * super().losses(outputs, batch)


class FivefoldInFull(Fivefold):
    def sample_targets(self, outputs, batch, generator):
        return super().sample_targets(outputs / 5, batch, generator)

    def curvature_factors(self, outputs, batch):
        return super().curvature_factors(outputs, batch) * 5**0.5


def test_curvature_of_a_parents_losses_is_not_taken_for_that_of_other_losses(make_examples):
    adapter, examples = Fivefold(), make_examples(9, 6)
    model = adapter.build_model()
    plan = plan_features(model, EXACT)
    assert default_curvature_kind(adapter) == "empirical"
    for kind, method in (("fisher", "sample_targets"), ("ggn", "curvature_factors")):
        with pytest.raises(ModelError, match=f"Fivefold has losses of its own, but curvature `{kind}`") as caught:
            model_curvature(adapter, model, examples, plan, kind=kind)
        assert method in caught.value.remedy
        with pytest.raises(ModelError, match="losses of its own"):
            fit_eigen_basis(adapter, model, examples, plan, kind=kind)


def test_a_class_below_may_say_what_belongs_to_the_losses(make_classifier, make_examples):
    examples = make_examples(9, 6)
    adapter = FivefoldInFull()
    model = adapter.build_model()
    plan = plan_features(model, EXACT)
    assert default_curvature_kind(adapter) == "fisher"
    fivefold = model_curvature(adapter, model, examples, plan, kind="ggn")
    plain = model_curvature(make_classifier(adapter.build_model, examples), model, examples, plan, kind="ggn")
    assert relative(fivefold.blocks[0], 5 * plain.blocks[0]) < 1e-5


def test_unknown_kinds_empty_data_and_bad_examples_are_refused(perceptron):
    adapter, model, examples = perceptron
    plan = plan_features(model)
    with pytest.raises(UsageError, match="'hessian'"):
        model_curvature(adapter, model, examples, plan, kind="hessian")
    with pytest.raises(DataError, match="without examples"):
        model_curvature(adapter, model, [], plan, kind="ggn")
    with pytest.raises(DataError, match="without examples"):
        empirical_curvature([], plan)
    bad = dataclasses.replace(examples[1], inputs=torch.full((12,), torch.nan))
    for kind in ("ggn", "fisher"):
        with pytest.raises(DataError, match="example-001"):
            model_curvature(adapter, model, [examples[0], bad], plan, kind=kind)
