from __future__ import annotations

import dataclasses
import hashlib

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from gradtrail.attribution.curvature import kronecker
from gradtrail.attribution.curvature.blocks import DiagonalCurvature
from gradtrail.attribution.curvature.damping import Damping
from gradtrail.attribution.curvature.kronecker import fit_eigen_basis
from gradtrail.attribution.curvature.vectors import observed_vectors
from gradtrail.attribution.features.plan import FeatureSettings, plan_features, plan_from_config
from gradtrail.attribution.gradients.capture import compute_features
from gradtrail.attribution.gradients.checks import check_capture
from gradtrail.attribution.methods.rules import prepare_queries
from gradtrail.attribution.methods.spec import MethodSpec
from gradtrail.attribution.projection.eigen import EigenBasis, leading_basis
from gradtrail.errors import DataError, ModelError, StoreError, UsageError

DAMPING = 1e-3
EXACT = FeatureSettings(group_dimension=10**6, dtype="float64")


def relative(left: Tensor, right: Tensor) -> float:
    return ((left - right).norm() / right.norm()).item()


def in_basis(adapter, model, examples, settings, kind="empirical", **options):
    plan = plan_features(model, settings)
    basis = fit_eigen_basis(adapter, model, examples, plan, kind=kind, **options)
    return dataclasses.replace(plan, basis=basis)


@pytest.fixture
def double_network(make_classifier, make_examples):
    class Double(make_classifier):
        input_dtype = torch.float64

    def build() -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, 6, 2, groups=2), nn.Flatten(), nn.Linear(24, 5)
        ).double()

    torch.manual_seed(3)
    examples = make_examples(30, 1, 3, 3)
    adapter = Double(build, examples)
    return adapter, adapter.build_model(), examples


def dense_ekfac_scores(model: nn.Module, adapter, examples) -> Tensor:
    """By the book: factors from autograd and unfold, eigenvectors per block, λ from full gradients, one at a time."""
    scores = torch.zeros(len(examples), len(examples), dtype=torch.float64)
    for layer in (model[0], model[2], model[4]):
        inputs, gradients, matrices = [], [], []
        for example in examples:
            seen = {}

            def see(_, args, output, seen=seen):
                seen["input"], seen["output"] = args[0].detach(), output

            handle = layer.register_forward_hook(see)
            batch = adapter.collate([example])
            loss = adapter.losses(adapter.outputs(model, batch), batch).sum()
            handle.remove()
            (gradient,) = torch.autograd.grad(loss, seen["output"])
            blocks = layer.groups if isinstance(layer, nn.Conv2d) else 1
            if isinstance(layer, nn.Conv2d):
                patches = nn.functional.unfold(seen["input"], layer.kernel_size, padding=layer.padding)[0]
            else:
                patches = seen["input"].T
            patches = patches.reshape(blocks, -1, patches.shape[1])
            patches = torch.cat([patches, torch.ones_like(patches[:, :1])], dim=1)
            gradient = gradient.reshape(blocks, -1, patches.shape[2])
            inputs.append(patches)
            gradients.append(gradient)
            matrices.append(gradient @ patches.transpose(1, 2))
        for block in range(len(matrices[0])):
            a_factor = sum(a[block] @ a[block].T for a in inputs)
            s_factor = sum(s[block] @ s[block].T for s in gradients)
            left, right = torch.linalg.eigh(s_factor)[1], torch.linalg.eigh(a_factor)[1]
            turned = torch.stack([left.T @ matrix[block] @ right for matrix in matrices]).flatten(1)
            scores += turned / (turned.square().mean(0) + DAMPING) @ turned.T
    return scores


def test_ekfac_agrees_with_a_dense_reference(double_network):
    adapter, model, examples = double_network
    plan = in_basis(adapter, model, examples, EXACT, batch_size=7)
    rows = compute_features(adapter, model, examples, plan)
    diagonal = DiagonalCurvature.fit(observed_vectors([rows], plan))
    prepared = prepare_queries(MethodSpec("ekfac", damping=Damping(0, DAMPING)), rows, plan, diagonal=diagonal)
    found = prepared.vectors @ rows.vectors.T
    expected = dense_ekfac_scores(model, adapter, examples)
    print("ekfac against the dense reference:", relative(found, expected))
    assert relative(found, expected) < 1e-6


def test_a_full_basis_turns_features_without_changing_any_inner_product(network):
    adapter, model, examples = network
    settings = FeatureSettings(group_dimension=10**6)
    plain = compute_features(adapter, model, examples, plan_features(model, settings))
    plan = in_basis(adapter, model, examples, settings)
    turned = compute_features(adapter, model, examples, plan)
    assert relative(turned.vectors @ turned.vectors.T, plain.vectors @ plain.vectors.T) < 1e-5
    assert relative(turned.squared_norms, plain.squared_norms) < 1e-5
    assert relative(turned.vectors, plain.vectors) > 0.1
    check_capture(adapter, model, examples, plan)


def test_a_truncated_basis_keeps_more_of_the_gradient_than_a_random_one(network):
    adapter, model, examples = network
    settings = FeatureSettings(group_dimension=36)
    exact = compute_features(adapter, model, examples, plan_features(model, FeatureSettings(group_dimension=10**6)))
    expected = exact.vectors @ exact.vectors.T
    random = compute_features(adapter, model, examples, plan_features(model, settings))
    plan = in_basis(adapter, model, examples, settings)
    assert plan.projection_kind == "eigen"
    eigen = compute_features(adapter, model, examples, plan)
    check_capture(adapter, model, examples, plan)
    assert eigen.vectors.shape == random.vectors.shape
    errors = [relative(rows.vectors @ rows.vectors.T, expected) for rows in (eigen, random)]
    print("relative error of the inner products, eigen and random:", errors)
    assert errors[0] < 0.5 * errors[1]


def test_the_sketch_of_the_complement_keeps_inner_products_unbiased():
    torch.manual_seed(0)
    root = torch.randn(2, 10, 10, dtype=torch.float64) * torch.logspace(0, -2, 10)
    factor = root @ root.transpose(1, 2)
    products = []
    for seed in range(3000):
        matrix = leading_basis(factor, 8, seed=seed, group="layer", side="inputs").reshape(20, 8)
        products.append(matrix @ matrix.T)
    mean = torch.stack(products).mean(0)
    assert relative(mean, torch.eye(20, dtype=torch.float64)) < 0.1
    leading = leading_basis(factor, 8, seed=1, group="layer", side="inputs").reshape(20, 8)[:, :7]
    assert relative(leading.T @ leading, torch.eye(7, dtype=torch.float64)) < 1e-10
    captured = (leading.T @ torch.block_diag(*factor) @ leading).trace()
    best = torch.linalg.eigvalsh(torch.block_diag(*factor)).flip(0)[:7].sum()
    assert captured.item() == pytest.approx(best.item(), rel=1e-10)


@pytest.mark.parametrize("kind", ["empirical", "fisher", "ggn"])
def test_every_kind_gives_a_basis_whatever_the_batch_size(double_network, kind):
    adapter, model, examples = double_network
    small = in_basis(adapter, model, examples, FeatureSettings(group_dimension=16), kind, batch_size=4)
    large = in_basis(adapter, model, examples, FeatureSettings(group_dimension=16), kind, batch_size=30)
    for name, matrix in small.basis.matrices.items():
        other = large.basis.matrices[name]
        kept = matrix.shape[2] - max(1, matrix.shape[2] // 8)
        for left, right in zip(matrix[0, :, :kept].T, other[0, :, :kept].T, strict=True):
            assert abs(abs(left @ right) - left.norm() * right.norm()) < 1e-6
    assert small.config()["projection"]["factors"] == kind


def test_projections_that_differ_have_different_ids_and_never_mix(double_network):
    adapter, model, examples = double_network
    settings = FeatureSettings(group_dimension=16)
    random = plan_features(model, settings)
    plan = in_basis(adapter, model, examples, settings)
    other = in_basis(adapter, model, examples[:20], settings)
    configs = [each.config() for each in (random, plan, other)]
    assert len({str(config) for config in configs}) == 3
    assert plan_from_config(model, plan.config(), plan.basis).config() == plan.config()
    with pytest.raises(StoreError, match="other projection"):
        plan_from_config(model, plan.config(), other.basis)
    with pytest.raises(StoreError, match="other projection"):
        plan_from_config(model, plan.config())
    with pytest.raises(StoreError, match="other projection"):
        plan_from_config(model, random.config(), plan.basis)


def test_a_basis_survives_a_file_and_a_flipped_number_is_found(tmp_path, double_network):
    from safetensors.torch import load_file, save_file

    basis = in_basis(*double_network, FeatureSettings(group_dimension=16)).basis
    save_file(basis.to_tensors(), tmp_path / "basis.safetensors")
    tensors = load_file(tmp_path / "basis.safetensors")
    assert EigenBasis.from_tensors(tensors, basis.kind, basis.digest).digest == basis.digest
    tensors["outputs:0"][0, 0, 0] += 1e-12
    with pytest.raises(StoreError, match="A stored eigenbasis has digest"):
        EigenBasis.from_tensors(tensors, basis.kind, basis.digest)


def test_what_an_index_id_says_about_a_basis_is_spelt_out():
    """With any other text or bytes, indexes that exist would be measured again under another id."""
    matrix = torch.arange(6, dtype=torch.float64).reshape(1, 3, 2)
    basis = EigenBasis("empirical", {"outputs:0": matrix, "inputs:0": matrix.transpose(1, 2)})
    digest = hashlib.sha256(b"eigen 2 empirical\ninputs:0 (1, 2, 3)\n" + np.array([0, 2, 4, 1, 3, 5], "<f8").tobytes())
    digest.update(b"\noutputs:0 (1, 3, 2)\n" + np.arange(6, dtype="<f8").tobytes())
    described = {"kind": "eigen", "seed": 5, "version": 2, "factors": "empirical", "digest": digest.hexdigest()}
    assert basis.config(5) == described


def test_a_basis_of_another_group_dimension_is_refused(double_network):
    adapter, model, examples = double_network
    basis = in_basis(adapter, model, examples, FeatureSettings(group_dimension=16)).basis
    plan = dataclasses.replace(plan_features(model, FeatureSettings(group_dimension=25)), basis=basis)
    with pytest.raises(StoreError, match="eigenbasis of group"):
        compute_features(adapter, model, examples, plan)


def test_sides_that_are_too_wide_and_layers_without_factors_are_projected_as_before(
    monkeypatch, make_classifier, make_examples
):
    monkeypatch.setattr(kronecker, "LARGEST_FACTOR", 20)
    examples = make_examples(9, 30)
    adapter = make_classifier(lambda: nn.Sequential(nn.Linear(30, 18), nn.LayerNorm(18), nn.Linear(18, 5)), examples)
    torch.manual_seed(0)
    model = adapter.build_model()
    plan = in_basis(adapter, model, examples, FeatureSettings(group_dimension=36))
    assert set(plan.basis.matrices) == {"outputs:0", "outputs:2", "inputs:2"}
    check_capture(adapter, model, examples, plan)
    monkeypatch.setattr(kronecker, "LARGEST_FACTOR", 2)
    with pytest.raises(ModelError, match="No layer of Sequential has Kronecker factors"):
        fit_eigen_basis(adapter, model, examples, plan_features(model), kind="empirical")


def test_hooks_and_modes_are_undone_also_after_an_exception(double_network):
    adapter, model, examples = double_network
    model.train()
    bad = dataclasses.replace(examples[3], inputs=torch.full((1, 3, 3), torch.nan))
    with pytest.raises(DataError, match="not finite for example-003"):
        in_basis(adapter, model, [*examples[:3], bad], EXACT)
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


def test_examples_that_are_not_finite_are_left_out_of_the_factors_and_reported(double_network):
    adapter, model, examples = double_network
    plan = plan_features(model, EXACT)
    bad = dataclasses.replace(examples[3], inputs=torch.full((1, 3, 3), torch.nan))
    reported = {}
    found = fit_eigen_basis(
        adapter, model, [*examples[:3], bad], plan, kind="empirical", on_non_finite=reported.__setitem__
    )
    without = fit_eigen_basis(adapter, model, examples[:3], plan, kind="empirical", batch_size=1)
    assert list(reported) == ["example-003"]
    for name, matrix in found.matrices.items():
        assert relative(matrix[0, :, 0].abs(), without.matrices[name][0, :, 0].abs()) < 1e-6


def test_factors_without_examples_and_of_unknown_kinds_are_refused(double_network):
    adapter, model, _ = double_network
    plan = plan_features(model)
    with pytest.raises(DataError, match="without examples"):
        fit_eigen_basis(adapter, model, [], plan, kind="empirical")
    with pytest.raises(UsageError, match="no curvature kind 'hessian'"):
        fit_eigen_basis(adapter, model, [], plan, kind="hessian")


def test_ekfac_refuses_an_index_in_another_basis(double_network):
    adapter, model, examples = double_network
    plan = plan_features(model, EXACT)
    rows = compute_features(adapter, model, examples, plan)
    with pytest.raises(UsageError, match="needs features in the eigenbasis") as caught:
        prepare_queries(MethodSpec("ekfac"), rows, plan, diagonal=DiagonalCurvature.fit(observed_vectors([rows], plan)))
    assert "--projection eigen" in caught.value.remedy


def test_a_diagonal_needs_damping_where_it_is_zero_and_its_own_plan(double_network):
    adapter, model, examples = double_network
    plan = in_basis(adapter, model, examples[:2], EXACT)
    rows = compute_features(adapter, model, examples[:2], plan)
    diagonal = DiagonalCurvature.fit(observed_vectors([rows], plan))
    holed = dataclasses.replace(diagonal, diagonal=diagonal.diagonal * (torch.arange(plan.dimension) > 0))
    with pytest.raises(UsageError, match="group 0 is singular"):
        prepare_queries(MethodSpec("ekfac", damping=Damping(0)), rows, plan, diagonal=holed)
    dead = dataclasses.replace(diagonal, diagonal=torch.zeros_like(diagonal.diagonal))
    assert not prepare_queries(MethodSpec("ekfac"), rows, plan, diagonal=dead).vectors.any()
    short = dataclasses.replace(diagonal, diagonal=diagonal.diagonal[1:])
    with pytest.raises(StoreError, match="other groups"):
        prepare_queries(MethodSpec("ekfac"), rows, plan, diagonal=short)


class Recurrent(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.layer, self.head = kind(3, 4, batch_first=True), nn.Linear(4, 5)

    def forward(self, inputs):
        return self.head(self.layer(inputs[:, 0])[0][:, -1])


class WithTokens(nn.Module):
    """A parameter that the model uses by itself, as class tokens and positions are."""

    def __init__(self):
        super().__init__()
        self.token, self.scale = nn.Parameter(torch.randn(1, 1, 3)), nn.Parameter(torch.randn(3))
        self.layer, self.head = nn.Linear(3, 4), nn.Linear(4, 5)

    def forward(self, inputs):
        rows = torch.cat([self.token.expand(len(inputs), -1, -1), inputs[:, 0]], dim=1) * self.scale
        return self.head(torch.tanh(self.layer(rows)).mean(1))


@pytest.mark.parametrize(
    "build",
    [
        lambda: nn.Sequential(
            nn.Conv2d(1, 4, 2), nn.Tanh(), nn.Conv2d(4, 8, 2, groups=4), nn.Flatten(), nn.Linear(8, 5)
        ),
        lambda: nn.Sequential(nn.Conv2d(1, 4, 2), nn.GroupNorm(2, 4), nn.Flatten(), nn.Linear(16, 5)),
        lambda: Recurrent(nn.LSTM),
        lambda: Recurrent(nn.GRU),
        WithTokens,
    ],
    ids=["depthwise", "norm", "LSTM", "GRU", "tokens"],
)
def test_every_way_to_measure_a_layer_goes_with_a_basis(build, make_classifier, make_examples):
    torch.manual_seed(5)
    examples = make_examples(12, 1, 3, 3)
    adapter = make_classifier(build, examples)
    model = adapter.build_model()
    settings = FeatureSettings(group_dimension=10**6)
    plain = compute_features(adapter, model, examples, plan_features(model, settings)).vectors
    turned = compute_features(adapter, model, examples, in_basis(adapter, model, examples, settings)).vectors
    assert relative(turned @ turned.T, plain @ plain.T) < 1e-5
