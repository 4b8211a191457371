from __future__ import annotations

import pytest
import torch
from torch import nn

from gradtrail.attribution.curvature.blocks import BlockCurvature, DiagonalCurvature
from gradtrail.attribution.curvature.condition_numbers import conditioning, conditioning_warnings
from gradtrail.attribution.curvature.damping import Damping
from gradtrail.attribution.curvature.spectrum import Spectrum
from gradtrail.attribution.features.plan import plan_features


@pytest.fixture
def plan_of_two():
    """Groups of 6 and 6 columns."""
    return plan_features(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)))


def block(*eigenvalues: float) -> torch.Tensor:
    turn, _ = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    return turn @ torch.diag(torch.tensor(eigenvalues, dtype=torch.float64)) @ turn.T


def test_rank_smallest_eigenvalue_and_condition_are_those_of_each_group(plan_of_two):
    curvature = BlockCurvature("ggn", (block(6, 5, 4, 3, 2, 1), block(8, 4, 0, 0, 0, 0)), 50)
    first, second = conditioning(curvature, plan_of_two, Damping(0.1, 0.05))
    assert (first.group, first.dimension, first.rank) == ("0", 6, 6)
    assert first.smallest_eigenvalue == pytest.approx(1)
    assert first.damping == pytest.approx(0.1 * 3.5 + 0.05)
    assert first.condition == pytest.approx(6.4 / 1.4)
    assert (second.rank, second.smallest_eigenvalue) == (2, 0.0)
    assert second.condition == pytest.approx(8.25 / 0.25)
    [warning] = conditioning_warnings([first, second], 50)
    assert "mean over 50 examples" in warning
    assert "1: rank 2 of 6" in warning
    assert "0: rank" not in warning


def test_a_condition_that_eats_the_digits_is_warned_about_and_damping_mends_it(plan_of_two):
    curvature = BlockCurvature("ggn", (block(6, 5, 4, 3, 2, 1e-9), block(6, 5, 4, 3, 2, 1)), 50)
    [warning] = conditioning_warnings(conditioning(curvature, plan_of_two, Damping(0, 0)), 50)
    assert "badly conditioned (0: smallest eigenvalue 1e-09" in warning
    assert warning.endswith("Raise the damping.")
    assert conditioning_warnings(conditioning(curvature, plan_of_two, Damping(0.1)), 50) == ()


def test_groups_without_gradients_are_no_reason_to_warn(plan_of_two):
    curvature = BlockCurvature("ggn", (block(*[0.0] * 6), block(6, 5, 4, 3, 2, 1)), 50)
    [only] = conditioning(curvature, plan_of_two, Damping())
    assert only.group == "1"


def test_spectra_count_the_directions_no_example_has(plan_of_two):
    spectrum = Spectrum(
        "empirical", torch.tensor([0.5, 2.5], dtype=torch.float64), torch.eye(12, 2, dtype=torch.float64), 2
    )
    [found] = conditioning(spectrum, plan_of_two, Damping(1.0))
    assert (found.group, found.dimension, found.rank) == ("all groups together", 12, 2)
    assert found.smallest_eigenvalue == 0
    assert found.damping == pytest.approx(3 / 12)
    bare = conditioning(spectrum, plan_of_two, Damping(0, 0))[0]
    assert bare.condition == float("inf")
    diagonal = DiagonalCurvature("fisher", torch.arange(12, dtype=torch.float64), 9)
    first, second = conditioning(diagonal, plan_of_two, Damping(1.0))
    assert (first.rank, second.rank) == (5, 6)
    assert second.damping == pytest.approx(8.5)


def test_many_groups_are_summed_up(plan_of_two):
    entries = conditioning(
        BlockCurvature("ggn", (block(1, 0, 0, 0, 0, 0), block(1, 0, 0, 0, 0, 0)), 9), plan_of_two, Damping()
    )
    [warning] = conditioning_warnings(entries * 3, 9)
    assert "and 3 more" in warning
