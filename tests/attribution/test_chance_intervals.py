"""Intervals of shares: what chance gives is not called a finding, however many values are looked at."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gradtrail.attribution.features.rows import GradientBatch
from gradtrail.attribution.scoring.attribute_sums import AttributeCodes
from gradtrail.attribution.scoring.permutation_intervals import interval_shares


def shares_of(masses: np.ndarray, labels: np.ndarray, seed: int = 0):
    """Interval shares of one attribute, and the share of the examples that each value has."""
    names = [f"s{label}" for label in labels]
    codes = AttributeCodes(["source"])
    count = len(masses)
    empty = (torch.zeros(count, 0), torch.zeros(count), torch.ones(count, 1))
    codes.add(GradientBatch([str(row) for row in range(count)], *empty, {"source": names}))
    found = interval_shares(masses / masses.sum(), codes, 200, seed)["source"]
    return found, {name: names.count(name) / count for name in found}


def heavy_tailed(generator: np.random.Generator, count: int, tail: float) -> np.ndarray:
    """Scores of one side as they come: half of them 0, a few large."""
    return np.maximum(generator.standard_normal(count) * np.exp(tail * generator.standard_normal(count)), 0)


@pytest.mark.parametrize(("examples", "sources", "tail"), [(2000, 200, 0.3), (3000, 200, 1.2), (600, 2, 0.5)])
def test_sources_without_any_effect_leave_their_intervals_in_few_of_many_draws(examples, sources, tail):
    above = below = 0
    for seed in range(40):
        generator = np.random.default_rng(seed)
        found, _ = shares_of(heavy_tailed(generator, examples, tail), generator.integers(0, sources, examples), seed)
        above += any(each.share > each.high for each in found.values())
        below += any(each.share < each.low for each in found.values())
    print("draws with a source above, and below, its interval:", above, below)
    assert max(above, below) <= 4


def test_a_source_with_an_effect_is_found_among_many_small_ones():
    hits = 0
    for seed in range(10):
        generator = np.random.default_rng(seed)
        labels = np.concatenate([generator.integers(0, 3, 2700), 3 + np.arange(300)])
        masses = heavy_tailed(generator, 3000, 0.5)
        masses[labels == 0] *= 2
        found, sizes = shares_of(masses, labels, seed)
        hits += found["s0"].share > found["s0"].high
        assert found["s0"].low < sizes["s0"] < found["s0"].high
    assert hits == 10


def test_an_interval_widens_with_the_number_of_values_tested():
    generator = np.random.default_rng(3)
    masses, halves = heavy_tailed(generator, 2000, 0.5), np.arange(2000) % 2
    alone, _ = shares_of(masses, halves)
    split = np.where(halves == 0, 0, 1 + np.arange(2000) % 200)
    among, _ = shares_of(masses, split)
    assert among["s0"].low < alone["s0"].low < alone["s0"].high < among["s0"].high


def test_a_share_that_no_shuffle_changes_is_its_own_interval():
    found, _ = shares_of(np.ones(6), np.array([0, 0, 1, 1, 1, 2]))
    assert all(each.low == each.share == each.high for each in found.values())
    only, _ = shares_of(np.arange(5.0), np.zeros(5, dtype=int))
    assert (only["s0"].low, only["s0"].share, only["s0"].high) == pytest.approx((1, 1, 1))
