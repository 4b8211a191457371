from __future__ import annotations

import dataclasses

import pytest
import torch

from gradtrail.attribution.curvature.kronecker import fit_eigen_basis
from gradtrail.attribution.curvature.spectrum import Spectrum
from gradtrail.attribution.curvature.vectors import observed_vectors
from gradtrail.attribution.features.plan import FeatureSettings, plan_features
from gradtrail.attribution.features.rows import GradientBatch
from gradtrail.attribution.gradients.capture import compute_features
from gradtrail.attribution.methods.rules import prepare_queries
from gradtrail.attribution.methods.spec import MethodSpec
from gradtrail.attribution.methods.unrolling import Segment, unrolled_queries
from gradtrail.errors import StoreError, UsageError

SIZE = 5
PLAN = plan_features(torch.nn.Linear(SIZE, 1, bias=False), FeatureSettings(dtype="float64"))


def spectrum(seed: int) -> tuple[Spectrum, torch.Tensor]:
    factor = torch.randn(SIZE, SIZE, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    curvature = factor @ factor.T / SIZE
    return Spectrum("empirical", *torch.linalg.eigh(curvature), 10), curvature


def queries() -> GradientBatch:
    vectors = torch.randn(3, SIZE, dtype=torch.float64, generator=torch.Generator().manual_seed(9))
    return GradientBatch(["a", "b", "c"], vectors, torch.ones(3), vectors.square().sum(1, keepdim=True))


def test_two_segments_of_one_curvature_are_one_of_their_length_together():
    found, _ = spectrum(0)
    first, second = unrolled_queries(queries(), [Segment(found, 0.4), Segment(found, 1.1)], PLAN)
    assert torch.allclose(
        first.vectors + second.vectors, found.gradient_descent(queries().vectors, 1.5), rtol=1e-10, atol=1e-12
    )


def test_segments_foretell_gradient_descent_on_a_quadratic_whose_curvature_changes():
    (early, hessian), (late, later) = spectrum(1), spectrum(2)
    pushes = torch.randn(2, SIZE, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    steps, rate = 20_000, 1e-4
    moved = torch.zeros(SIZE, dtype=torch.float64)
    for curvature, push in ((hessian, pushes[0]), (later, pushes[1])):
        for _ in range(steps // 2):
            moved = moved - rate * (curvature @ moved - push)
    segments = [Segment(early, rate * steps / 2), Segment(late, rate * steps / 2)]
    prepared = unrolled_queries(queries(), segments, PLAN)
    predicted = sum(one.vectors @ push for one, push in zip(prepared, pushes, strict=True))
    assert torch.allclose(predicted, queries().vectors @ moved, rtol=1e-3, atol=1e-5)
    assert prepared[0].query_ids == ("a", "b", "c")


def test_a_query_is_carried_back_as_gradient_descent_forgets():
    found, curvature = spectrum(1)
    prepared = prepare_queries(MethodSpec("unrolled"), queries(), PLAN, spectrum=found, segment=0.7)
    expected = queries().vectors @ torch.linalg.matrix_exp(-0.7 * curvature)
    assert prepared.carried is not None
    assert torch.allclose(prepared.carried, expected, rtol=1e-10, atol=1e-12)
    assert prepare_queries(MethodSpec("horizon", horizon=0.7), queries(), PLAN, spectrum=found).carried is None


def test_an_eigenbasis_of_one_checkpoint_cannot_carry_queries_to_another(convolutional):
    adapter, model, examples = convolutional
    plan = plan_features(model)
    turned = dataclasses.replace(plan, basis=fit_eigen_basis(adapter, model, examples, plan, kind="empirical"))
    rows = compute_features(adapter, model, examples, turned)
    fitted = Spectrum.fit(observed_vectors([rows], turned))
    with pytest.raises(UsageError, match="each eigenbasis is of one checkpoint"):
        prepare_queries(MethodSpec("unrolled"), rows, turned, spectrum=fitted, segment=1.0)
    for needs, missing in (({"segment": 1.0}, "the spectrum"), ({"spectrum": fitted}, "the part of training")):
        with pytest.raises(UsageError, match=missing):
            prepare_queries(MethodSpec("unrolled"), compute_features(adapter, model, examples, plan), plan, **needs)


def test_without_a_segment_or_with_another_plan_there_is_nothing_to_unroll():
    found, _ = spectrum(0)
    with pytest.raises(UsageError, match="no segment"):
        unrolled_queries(queries(), [], PLAN)
    with pytest.raises(UsageError, match="horizon"):
        unrolled_queries(queries(), [Segment(found, 0.0)], PLAN)
    other = plan_features(torch.nn.Linear(SIZE + 1, 1, bias=False), FeatureSettings(dtype="float64"))
    with pytest.raises(StoreError, match="plan of the index"):
        unrolled_queries(queries(), [Segment(found, 1.0)], other)
