"""Kronecker factors of sequences: attention has them too, and padding never counts."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor, nn

from gradtrail.attribution.curvature.blocks import DiagonalCurvature
from gradtrail.attribution.curvature.damping import Damping
from gradtrail.attribution.curvature.kronecker import fit_eigen_basis
from gradtrail.attribution.curvature.vectors import observed_vectors
from gradtrail.attribution.features.plan import FeatureSettings, plan_features
from gradtrail.attribution.gradients.capture import compute_features
from gradtrail.attribution.gradients.checks import check_capture
from gradtrail.attribution.methods.rules import prepare_queries
from gradtrail.attribution.methods.spec import MethodSpec
from gradtrail.attribution.projection.eigen import EigenBasis
from gradtrail.nouns import Example

WIDTH = 4
EXACT = FeatureSettings(group_dimension=10**6, dtype="float64")


class Attending(nn.Module):
    """Attention over the positions that are not zero, then a linear layer on each, summed."""

    def __init__(self, cross: bool, batch_first: bool) -> None:
        super().__init__()
        self.attend = nn.MultiheadAttention(WIDTH, 2, batch_first=batch_first)
        self.read = nn.Linear(WIDTH, 5)
        nn.init.normal_(self.attend.in_proj_bias)
        self.cross, self.batch_first = cross, batch_first

    def forward(self, inputs: Tensor) -> Tensor:
        padding = (inputs == 0).all(-1)
        context = torch.sin(inputs) if self.cross else inputs
        query, context = (part if self.batch_first else part.transpose(0, 1) for part in (inputs, context))
        attended, _ = self.attend(query, context if self.cross else query, context if self.cross else query, padding)
        attended = attended if self.batch_first else attended.transpose(0, 1)
        return self.read(attended.tanh()).masked_fill(padding.unsqueeze(2), 0).sum(1)


@pytest.fixture
def make_attending(make_classifier):
    def make(examples, cross=False, batch_first=True):
        class Double(make_classifier):
            input_dtype = torch.float64

            def position_mask(self, batch):
                return ~(batch.inputs == 0).all(-1)

        torch.manual_seed(4)
        adapter = Double(lambda: Attending(cross, batch_first).double(), examples)
        return adapter, adapter.build_model()

    return make


def relative(left: Tensor, right: Tensor) -> float:
    return ((left - right).norm() / right.norm()).item()


def padded(examples: list[Example], positions: int) -> list[Example]:
    zeros = torch.zeros(positions, WIDTH)
    return [dataclasses.replace(example, inputs=torch.cat([example.inputs, zeros])) for example in examples]


@pytest.mark.parametrize(("cross", "batch_first"), [(False, True), (False, False), (True, True), (True, False)])
def test_attention_is_turned_into_its_eigenbasis_on_both_sides(make_attending, make_examples, cross, batch_first):
    examples = make_examples(40, 3, WIDTH)
    adapter, model = make_attending(examples, cross, batch_first)
    plan = plan_features(model, EXACT)
    basis = fit_eigen_basis(adapter, model, examples, plan, kind="empirical", batch_size=16)
    sides = {f"{side}:{name}" for side in ("outputs", "inputs") for name in ("attend", "attend.out_proj", "read")}
    assert set(basis.matrices) == sides
    assert "forward" not in vars(model.attend)
    turned = dataclasses.replace(plan, basis=basis)
    check_capture(adapter, model, examples, turned)
    plain, rows = (compute_features(adapter, model, examples, each) for each in (plan, turned))
    assert relative(rows.vectors @ rows.vectors.T, plain.vectors @ plain.vectors.T) < 1e-9
    assert relative(rows.vectors, plain.vectors) > 0.1


def test_ekfac_on_attention_is_the_diagonal_of_its_factors(make_attending, make_examples):
    examples = make_examples(30, 3, WIDTH)
    adapter, model = make_attending(examples)
    plan = plan_features(model, EXACT)
    plan = dataclasses.replace(plan, basis=fit_eigen_basis(adapter, model, examples, plan, kind="empirical"))
    rows = compute_features(adapter, model, examples, plan)
    diagonal = DiagonalCurvature.fit(observed_vectors([rows], plan))
    prepared = prepare_queries(MethodSpec("ekfac", damping=Damping(0, 1e-3)), rows, plan, diagonal=diagonal)
    gradients = {name: [] for name in ("in", "inputs", "outputs")}
    for example in examples:
        seen: dict[str, Tensor] = {}
        with_hook = _projection_inputs_and_gradients(model, adapter, example)
        seen |= with_hook
        gradients["inputs"].append(seen["a"].T @ seen["a"])
        gradients["outputs"].append(seen["s"].T @ seen["s"])
        gradients["in"].append(seen["s"].T @ seen["a"])
    right = torch.linalg.eigh(sum(gradients["inputs"])).eigenvectors
    left = torch.linalg.eigh(sum(gradients["outputs"])).eigenvectors
    turned = torch.stack([left.T @ gradient @ right for gradient in gradients["in"]])
    expected = (turned / (turned.square().mean(0) + 1e-3)).flatten(1) @ turned.flatten(1).T
    columns = next(c for group, c in zip(plan.groups, plan.slices, strict=True) if group.name == "attend")
    assert relative(prepared.vectors[:, columns] @ rows.vectors[:, columns].T, expected) < 1e-6


def _projection_inputs_and_gradients(model, adapter, example) -> dict[str, Tensor]:
    """a with its 1 (positions, width + 1) and s (positions, 3 · width) of the packed projection, by autograd alone."""
    batch = adapter.collate([example])
    inputs = batch.inputs[0]
    layer = model.attend
    packed = (inputs @ layer.in_proj_weight.T + layer.in_proj_bias).detach().requires_grad_()
    heads = [part.reshape(-1, 2, WIDTH // 2).transpose(0, 1) for part in packed.chunk(3, dim=1)]
    attended = nn.functional.scaled_dot_product_attention(*heads).transpose(0, 1).reshape(-1, WIDTH)
    logits = model.read(layer.out_proj(attended).tanh()).sum(0, keepdim=True)
    (gradient,) = torch.autograd.grad(adapter.losses(logits, batch).sum(), packed)
    ones = torch.ones(len(inputs), 1, dtype=inputs.dtype)
    return {"a": torch.cat([inputs, ones], dim=1), "s": gradient}


def spectral_projections(basis: EigenBasis) -> dict[str, Tensor]:
    """What no sign of an eigenvector changes: Σ_k k · v_k v_kᵀ."""
    order = {name: torch.arange(1.0, matrix.shape[2] + 1).double() for name, matrix in basis.matrices.items()}
    return {name: (matrix * order[name]) @ matrix.transpose(1, 2) for name, matrix in basis.matrices.items()}


def test_padding_does_not_change_the_factors(make_attending, make_examples):
    examples = make_examples(60, 3, WIDTH)
    adapter, model = make_attending(examples)
    plan = plan_features(model, EXACT)
    bases = [
        spectral_projections(fit_eigen_basis(adapter, model, each, plan, kind="empirical"))
        for each in (examples, padded(examples, 2))
    ]
    assert set(bases[0]) == set(bases[1])
    for name, expected in bases[0].items():
        assert relative(bases[1][name], expected) < 1e-6, name
