from __future__ import annotations

import dataclasses

import pytest
import torch

from gradtrail.attribution.curvature.blocks import BlockCurvature, empirical_curvature
from gradtrail.attribution.curvature.damping import Damping
from gradtrail.attribution.features.plan import FeatureSettings, plan_features
from gradtrail.attribution.features.rows import GradientBatch
from gradtrail.attribution.features.weights import group_weights, stored_vectors, unweighted_vectors
from gradtrail.attribution.gradients.capture import compute_features
from gradtrail.attribution.methods.needs import CURVATURE
from gradtrail.attribution.methods.rules import METHODS, prepare_queries
from gradtrail.attribution.methods.spec import MethodSpec
from gradtrail.attribution.scoring.passes import score
from gradtrail.errors import StoreError, UsageError
from gradtrail.nouns import Weighting


@pytest.fixture
def measured(convolutional):
    adapter, model, examples = convolutional
    plan = plan_features(model, FeatureSettings(group_dimension=36))
    rows = compute_features(adapter, model, examples, plan)
    return plan, rows


def rescaled(rows: GradientBatch, factor: float) -> GradientBatch:
    return dataclasses.replace(rows, vectors=rows.vectors * factor, squared_norms=rows.squared_norms * factor**2)


def all_scores(queries, rows):
    result = score(queries, lambda: [rows], top_k=100)
    return [dict(up + down) for up, down in zip(result.proponents, result.opponents, strict=True)]


def test_every_method_says_where_it_comes_from_and_what_it_costs():
    assert set(METHODS) >= {"grad_dot", "grad_cos", "influence"}
    for name, method in METHODS.items():
        assert method.name == name
        assert method.source.startswith("arXiv ")
        assert method.description
        assert method.cost
    assert METHODS["influence"].needs == (CURVATURE,)


def test_an_unknown_method_lists_the_known_ones(measured):
    plan, rows = measured
    with pytest.raises(UsageError, match="no attribution method 'tracin'") as caught:
        prepare_queries(MethodSpec("tracin"), rows, plan)
    assert all(name in caught.value.remedy for name in METHODS)


def test_grad_dot_under_uniform_weights_is_the_plain_inner_product(measured):
    plan, rows = measured
    prepared = prepare_queries(MethodSpec("grad_dot"), rows, plan, Weighting())
    assert torch.equal(prepared.vectors, rows.vectors)
    assert prepared.train_scale == "none"


def test_grad_cos_is_the_cosine_and_does_not_see_the_size_of_any_row(measured):
    plan, rows = measured
    expected = all_scores(prepare_queries(MethodSpec("grad_cos"), rows, plan), rows)
    cosine = torch.nn.functional.cosine_similarity(rows.vectors[0], rows.vectors[1], dim=0).item()
    assert expected[0][rows.example_ids[1]] == pytest.approx(cosine, rel=1e-4)
    assert expected[0][rows.example_ids[0]] == pytest.approx(1, rel=1e-5)
    for found in (
        all_scores(prepare_queries(MethodSpec("grad_cos"), rows, plan), rescaled(rows, 37.5)),
        all_scores(prepare_queries(MethodSpec("grad_cos"), rescaled(rows, 1e-3), plan), rows),
    ):
        for left, right in zip(expected, found, strict=True):
            assert right == pytest.approx(left, rel=1e-5)


def test_zero_gradients_score_zero_and_are_counted(measured):
    plan, rows = measured
    vectors, squares = rows.vectors.clone(), rows.squared_norms.clone()
    vectors[3], squares[3] = 0, 0
    dead = dataclasses.replace(rows, vectors=vectors, squared_norms=squares)
    prepared = prepare_queries(MethodSpec("grad_cos"), dead, plan)
    assert prepared.zero_norm_queries == 1
    result = score(prepared, lambda: [dead], top_k=100)
    assert result.zero_norm_examples == 1
    assert result.proponents[3] == result.opponents[3] == []
    assert torch.isfinite(result.positive_mass).all()
    assert dead.example_ids[3] not in dict(result.proponents[0] + result.opponents[0])


def test_influence_is_the_damped_inverse_of_each_block(measured):
    plan, rows = measured
    curvature = empirical_curvature([rows], plan)
    prepared = prepare_queries(MethodSpec("influence", damping=Damping(0.3, 1e-4)), rows, plan, curvature=curvature)
    for columns in plan.slices:
        part = rows.vectors[:, columns].double()
        block = part.T @ part / len(part)
        damping = 0.3 * torch.linalg.eigvalsh(block).mean() + 1e-4
        expected = part @ torch.linalg.inv(block + damping * torch.eye(len(block), dtype=torch.float64))
        assert torch.allclose(
            prepared.vectors[:, columns].double(), expected, rtol=1e-4, atol=1e-4 * expected.abs().max()
        )


def test_influence_needs_its_curvature_and_a_sensible_damping(measured):
    plan, rows = measured
    with pytest.raises(UsageError, match="needs a curvature"):
        prepare_queries(MethodSpec("influence"), rows, plan)
    curvature = empirical_curvature([rows], plan)
    with pytest.raises(UsageError, match="Damping relative=-1"):
        prepare_queries(MethodSpec("influence", damping=Damping(-1)), rows, plan, curvature=curvature)
    with pytest.raises(UsageError, match="singular with damping 0"):
        prepare_queries(MethodSpec("influence", damping=Damping(0)), rows, plan, curvature=curvature)
    other = BlockCurvature("empirical", curvature.blocks[:-1], 12)
    with pytest.raises(StoreError, match="other groups"):
        prepare_queries(MethodSpec("influence"), rows, plan, curvature=other)


def test_a_group_without_any_gradient_gets_no_influence_instead_of_a_failure(measured):
    plan, rows = measured
    curvature = empirical_curvature([rows], plan)
    dead = dataclasses.replace(curvature, blocks=(torch.zeros_like(curvature.blocks[0]), *curvature.blocks[1:]))
    prepared = prepare_queries(MethodSpec("influence"), rows, plan, curvature=dead)
    assert not prepared.vectors[:, plan.slices[0]].any()
    assert prepared.vectors[:, plan.slices[1]].any()


def test_weights_multiply_each_group_whatever_the_stored_weighting_was(measured):
    plan, rows = measured
    names = [group.name for group in plan.groups]
    wanted = Weighting("test", {name: float(position) for position, name in enumerate(names)})
    stored = Weighting("test", {name: 1.0 + position % 2 * 1e6 for position, name in enumerate(names)})
    weights = group_weights(wanted, plan)
    assert weights.mean() == pytest.approx(1)
    expected = sum(
        weight * rows.vectors[:, columns].double() @ rows.vectors[:, columns].double().T
        for weight, columns in zip(weights, plan.slices, strict=True)
    )
    prepared = prepare_queries(MethodSpec("grad_dot"), rows, plan, wanted, stored_weighting=stored)
    found = prepared.vectors.double() @ stored_vectors(rows.vectors, plan, stored).double().T
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item())
    assert not prepared.vectors[:, plan.slices[0]].any()
    back = unweighted_vectors(stored_vectors(rows.vectors, plan, stored), plan, stored)
    assert torch.allclose(back, rows.vectors, rtol=1e-5)


def test_curvature_is_fitted_before_any_weighting(measured):
    plan, rows = measured
    stored = Weighting("test", {group.name: 1.0 + position for position, group in enumerate(plan.groups)})
    weighted = dataclasses.replace(rows, vectors=stored_vectors(rows.vectors, plan, stored))
    plain, undone = empirical_curvature([rows], plan), empirical_curvature([weighted], plan, stored)
    for left, right in zip(plain.blocks, undone.blocks, strict=True):
        assert torch.allclose(left, right, rtol=1e-5, atol=1e-6 * left.abs().max().item())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"nowhere": 1.0}, "unknown groups \\['nowhere'\\]"),
        ({"first": None}, "without a weight \\['first'\\]"),
        ({"first": -1.0}, "negative"),
        ({"first": float("nan")}, "not finite"),
    ],
)
def test_weightings_that_do_not_fit_are_refused(measured, change, message):
    plan, rows = measured
    weights = {group.name: 1.0 for group in plan.groups} | change
    weighting = Weighting("test", {name: weight for name, weight in weights.items() if weight is not None})
    with pytest.raises(UsageError, match=message):
        prepare_queries(MethodSpec("grad_dot"), rows, plan, weighting)


def test_queries_of_another_plan_are_refused(measured):
    plan, rows = measured
    with pytest.raises(StoreError, match=r"columns"):
        prepare_queries(MethodSpec("grad_dot"), dataclasses.replace(rows, vectors=rows.vectors[:, 1:]), plan)
