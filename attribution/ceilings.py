"""Noise ceilings: what a perfect prediction could reach against a mean over a few seeds."""

from __future__ import annotations

from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from gradtrail.attribution.correlation import cosines, spearmans

_MOST_SPLITS = 35


def split_half_ceilings(by_seed: NDArray[np.float64]) -> tuple[float, float]:
    """Ceilings of Spearman and of cosine for the mean of `by_seed` (seeds, sets, queries) over at least two seeds.

    The agreement r between the means of two halves of the seeds (averaged over queries and over ways to halve)
    gives the reliability of the mean over all seeds, 2r / (1 + r) (Spearman–Brown); the correlation of noiseless
    values with that mean is its square root.
    """
    agreed = np.array(
        [
            (spearmans(first, second).mean(), cosines(first, second).mean())
            for first, second in _halves(by_seed, len(by_seed))
        ]
    ).mean(0)
    return _ceiling(float(agreed[0])), _ceiling(float(agreed[1]))


def _halves(by_seed: NDArray[np.float64], count: int) -> list[tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Means over two halves of the seeds, (sets, queries) each, for every way to halve them (or some of many)."""
    half = count // 2
    ways = [way for way in combinations(range(count), half) if 2 * half < count or 0 in way]
    if len(ways) > _MOST_SPLITS:
        ways = [ways[place] for place in np.linspace(0, len(ways) - 1, _MOST_SPLITS).round().astype(int)]
    pairs = []
    for way in ways:
        rest = [seed for seed in range(count) if seed not in way][:half]
        pairs.append((by_seed[list(way)].mean(0), by_seed[rest].mean(0)))
    return pairs


def _ceiling(agreement: float) -> float:
    return float(np.sqrt(2 * agreement / (1 + agreement))) if agreement > 0 else 0.0
