from __future__ import annotations

import pytest
import torch

from gradtrail.attribution.feature_rows import FeatureRows
from gradtrail.attribution.features import FeatureSettings, plan_features
from gradtrail.attribution.spectrum import Spectrum
from gradtrail.attribution.unrolling import Segment, unrolled_queries
from gradtrail.errors import StoreError, UsageError

SIZE = 5
PLAN = plan_features(torch.nn.Linear(SIZE, 1, bias=False), FeatureSettings(dtype="float64"))


def spectrum(seed: int) -> tuple[Spectrum, torch.Tensor]:
    factor = torch.randn(SIZE, SIZE, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    curvature = factor @ factor.T / SIZE
    return Spectrum("empirical", *torch.linalg.eigh(curvature), 10), curvature


def queries() -> FeatureRows:
    vectors = torch.randn(3, SIZE, dtype=torch.float64, generator=torch.Generator().manual_seed(9))
    return FeatureRows(["a", "b", "c"], vectors, torch.ones(3), vectors.square().sum(1, keepdim=True))


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
    foretold = sum(one.vectors @ push for one, push in zip(prepared, pushes, strict=True))
    assert torch.allclose(foretold, queries().vectors @ moved, rtol=1e-3, atol=1e-5)
    assert prepared[0].query_ids == ("a", "b", "c")


def test_without_a_segment_or_with_another_plan_there_is_nothing_to_unroll():
    found, _ = spectrum(0)
    with pytest.raises(UsageError, match="no segment"):
        unrolled_queries(queries(), [], PLAN)
    with pytest.raises(UsageError, match="horizon"):
        unrolled_queries(queries(), [Segment(found, 0.0)], PLAN)
    other = plan_features(torch.nn.Linear(SIZE + 1, 1, bias=False), FeatureSettings(dtype="float64"))
    with pytest.raises(StoreError, match="one plan"):
        unrolled_queries(queries(), [Segment(found, 1.0)], other)
