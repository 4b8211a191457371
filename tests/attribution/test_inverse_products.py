from __future__ import annotations

import dataclasses
import sys

import pytest
import torch
from torch import Tensor, nn

from gradtrail.attribution.curvature.blocks import model_curvature
from gradtrail.attribution.curvature.damping import Damping
from gradtrail.attribution.curvature.inverse_products import (
    Solutions,
    SolverOptions,
    inverse_curvature_products,
    project_parameters,
)
from gradtrail.attribution.curvature.kronecker import fit_eigen_basis
from gradtrail.attribution.features.plan import FeatureSettings, plan_features
from gradtrail.attribution.gradients.capture import compute_features
from gradtrail.attribution.methods.rules import prepare_queries
from gradtrail.attribution.methods.spec import MethodSpec
from gradtrail.attribution.numerics.linear_solvers import refuse_asymmetric
from gradtrail.attribution.scoring.self_scores import self_influence
from gradtrail.errors import DataError, ModelError, StoreError, UsageError

EXACT = FeatureSettings(group_dimension=10**6, dtype="float64")
TIGHT = SolverOptions(tolerance=1e-10, most_products=4000)


def relative(left: Tensor, right: Tensor) -> float:
    return ((left - right).norm() / right.norm()).item()


@pytest.fixture
def double_case(make_classifier, make_examples):
    class Double(make_classifier):
        input_dtype = torch.float64

    def build() -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(1, 3, 2), nn.Tanh(), nn.Flatten(), nn.Linear(12, 4), nn.Tanh(), nn.Linear(4, 5)
        ).double()

    torch.manual_seed(5)
    examples = make_examples(24, 1, 3, 3)
    adapter = Double(build, examples)
    return adapter, adapter.build_model(), examples


def dense_curvature(adapter, model, examples, kind) -> Tensor:
    batch = adapter.collate(examples)
    names = list(dict(model.named_parameters()))
    flat = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
    sizes = [parameter.numel() for parameter in model.parameters()]
    shapes = [parameter.shape for parameter in model.parameters()]

    def outputs(vector: Tensor) -> Tensor:
        parts = [part.reshape(shape) for part, shape in zip(vector.split(sizes), shapes, strict=True)]
        return torch.func.functional_call(model, dict(zip(names, parts, strict=True)), (batch.inputs,))

    if kind == "hessian":
        return torch.func.hessian(lambda vector: adapter.losses(outputs(vector), batch).mean())(flat)
    jacobian = torch.func.jacrev(outputs)(flat)
    probabilities = outputs(flat).softmax(1)
    hessians = torch.diag_embed(probabilities) - probabilities.unsqueeze(2) * probabilities.unsqueeze(1)
    return torch.einsum("nkp,nkl,nlq->pq", jacobian, hessians, jacobian) / len(examples)


def full_gradients(adapter, model, examples) -> Tensor:
    rows = []
    for example in examples:
        batch = adapter.collate([example])
        loss = adapter.losses(adapter.outputs(model, batch), batch).sum()
        rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))]))
    return torch.stack(rows)


@pytest.mark.parametrize(
    ("solver", "kind", "damping"), [("cg", "ggn", 0.03), ("cg", "hessian", 3.0), ("lissa", "ggn", 0.5)]
)
def test_solutions_agree_with_a_dense_solve(double_case, solver, kind, damping):
    adapter, model, examples = double_case
    plan = plan_features(model, EXACT)
    rows = compute_features(adapter, model, examples, plan)
    found = inverse_curvature_products(
        solver,
        adapter,
        model,
        examples,
        examples[:5],
        plan,
        kind=kind,
        damping=Damping(0.0, damping),
        options=TIGHT,
        batch_size=16,
    )
    prepared = prepare_queries(MethodSpec(solver), first(rows, 5), plan, solutions=found)
    scores = prepared.vectors @ rows.vectors.T
    dense = dense_curvature(adapter, model, examples, kind).detach()
    gradients = full_gradients(adapter, model, examples)
    expected = (
        gradients[:5] @ torch.linalg.inv(dense + damping * torch.eye(len(dense), dtype=torch.float64)) @ gradients.T
    )
    print(solver, kind, "against a dense solve:", relative(scores, expected), "products:", found.products)
    assert relative(scores, expected) < 1e-7
    assert found.residual <= 1e-10
    assert all(parameter.requires_grad for parameter in model.parameters())


def first(rows, count):
    return dataclasses.replace(
        rows,
        example_ids=rows.example_ids[:count],
        vectors=rows.vectors[:count],
        losses=rows.losses[:count],
        squared_norms=rows.squared_norms[:count],
    )


def test_relative_damping_is_a_share_of_the_mean_eigenvalue(double_case):
    adapter, model, examples = double_case
    plan = plan_features(model, EXACT)
    found = inverse_curvature_products("cg", adapter, model, examples, examples[:1], plan, damping=Damping(2.0, 0.1))
    ggn = model_curvature(adapter, model, examples, plan, kind="ggn")
    mean = sum(block.trace().item() for block in ggn.blocks) / plan.dimension
    assert found.damping == pytest.approx(2 * mean + 0.1, rel=0.5)
    again = inverse_curvature_products("cg", adapter, model, examples, examples[:1], plan, damping=Damping(2.0, 0.1))
    assert torch.equal(again.vectors, found.vectors)


@pytest.mark.parametrize("basis", ["random", "eigen"])
def test_solutions_are_projected_as_the_index_is(double_case, basis):
    adapter, model, examples = double_case
    exact = plan_features(model, EXACT)
    plan = plan_features(model, FeatureSettings(group_dimension=9, dtype="float64"))
    if basis == "eigen":
        plan = dataclasses.replace(plan, basis=fit_eigen_basis(adapter, model, examples, plan, kind="empirical"))
    # With an overwhelming damping the solution is the gradient over it.
    found = inverse_curvature_products("cg", adapter, model, examples, examples, plan, damping=Damping(0, 1e9))
    assert found.vectors.shape == (24, plan.dimension)
    assert plan.dimension < exact.dimension
    assert relative(found.vectors * 1e9, compute_features(adapter, model, examples, plan).vectors) < 1e-6


def test_full_gradients_project_to_the_features_of_every_kind_of_layer(make_classifier, make_examples):
    examples = make_examples(6, 4, 6)

    def build() -> nn.Module:
        return nn.Sequential(
            nn.Conv1d(4, 8, 3, groups=2),
            nn.GroupNorm(2, 8),
            nn.Tanh(),
            nn.Flatten(),
            nn.LayerNorm(32),
            nn.Linear(32, 5),
        )

    torch.manual_seed(0)
    adapter = make_classifier(build, examples)
    model = adapter.build_model()
    names = list(dict(model.named_parameters()))
    for settings in (FeatureSettings(group_dimension=16), FeatureSettings(group_dimension=10**6)):
        plan = plan_features(model, settings)
        assert sorted(name for group in plan.groups for name in group.parameters) == sorted(names)
        found = project_parameters(model, plan, names, full_gradients(adapter, model, examples))
        assert relative(found.float(), compute_features(adapter, model, examples, plan).vectors) < 1e-5


def test_emitted_targets_are_solved_with_their_own_measurement(make_regressor, make_examples):
    examples = [dataclasses.replace(e, target=[float(e.target)]) for e in make_examples(8, 3)]
    adapter = make_regressor(lambda: nn.Linear(3, 1).double(), examples)
    model = adapter.build_model()
    plan = plan_features(model, EXACT)
    for target in ("emitted", "label"):
        found = inverse_curvature_products(
            "cg", adapter, model, examples, examples, plan, damping=Damping(0, 1e9), target=target
        )
        expected = compute_features(adapter, model, examples, plan, target=target).vectors
        assert relative(found.vectors * 1e9, expected) < 1e-6


def test_solvers_that_do_not_get_there_say_so(double_case):
    adapter, model, examples = double_case
    plan = plan_features(model, EXACT)

    def solve(solver, **options):
        return inverse_curvature_products(solver, adapter, model, examples, examples[:2], plan, **options)

    with pytest.raises(UsageError, match="left a relative residual of"):
        solve("cg", damping=Damping(0, 1e-6), options=SolverOptions(1e-12, 3))
    short = solve("lissa", damping=Damping(0.1), options=SolverOptions(1e-12, 5))
    assert 1e-12 < short.residual < 1
    with torch.no_grad():
        model[5].bias.mul_(30)
    with pytest.raises(UsageError, match="not positive"):
        solve("cg", kind="hessian", damping=Damping(0, 0), options=SolverOptions(1e-12, 200))
    with pytest.raises(UsageError, match="not positive"):
        solve("lissa", kind="hessian", damping=Damping(0, 0), options=SolverOptions(1e-12, 2000))


def test_a_hessian_that_torch_gets_wrong_is_refused():
    matrix = torch.randn(6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    refuse_asymmetric(lambda vectors: (matrix + matrix.T) @ vectors, matrix[:, :0])
    with pytest.raises(UsageError, match="not symmetric"):
        refuse_asymmetric(lambda vectors: matrix @ vectors, matrix[:, :0])


def test_models_that_torch_func_cannot_follow_are_refused(make_classifier, make_examples):
    class Doubled(torch.autograd.Function):
        @staticmethod
        def forward(_context, inputs):
            return 2 * inputs

        @staticmethod
        def backward(_context, gradient):
            return 2 * gradient

    class OldFunction(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 5)

        def forward(self, inputs: Tensor) -> Tensor:
            return Doubled.apply(self.layer(inputs))

    examples = make_examples(6, 3)
    adapter = make_classifier(OldFunction, examples)
    model = adapter.build_model()
    with pytest.raises(ModelError, match=r"torch\.func cannot differentiate OldFunction") as caught:
        inverse_curvature_products("cg", adapter, model, examples, examples, plan_features(model))
    assert "influence_global" in caught.value.remedy


def test_unknown_curvatures_and_empty_inputs_are_refused(double_case):
    adapter, model, examples = double_case
    plan = plan_features(model, EXACT)
    with pytest.raises(UsageError, match="no full curvature 'fisher'"):
        inverse_curvature_products("cg", adapter, model, examples, examples, plan, kind="fisher")
    with pytest.raises(DataError, match="0 training examples and 24 outputs"):
        inverse_curvature_products("cg", adapter, model, [], examples, plan)
    rows = compute_features(adapter, model, examples, plan)
    with pytest.raises(StoreError, match="gave vectors of shape"):
        prepare_queries(MethodSpec("cg"), rows, plan, solutions=Solutions(rows.vectors[:3], 0.0, 0.0, 0))
    with pytest.raises(UsageError, match="too much for every training example"):
        next(self_influence(MethodSpec("cg"), lambda: [rows], plan))


def test_without_curvlinops_the_extra_is_named(double_case, monkeypatch):
    adapter, model, examples = double_case
    monkeypatch.setitem(sys.modules, "curvlinops", None)
    with pytest.raises(UsageError, match="need curvlinops, which is not installed") as caught:
        inverse_curvature_products("cg", adapter, model, examples, examples[:1], plan_features(model))
    assert "gradtrail[curvature]" in caught.value.remedy
    assert all(parameter.requires_grad for parameter in model.parameters())
