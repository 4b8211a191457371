"""Noise ceilings: what a perfect prediction could reach against a mean over a few seeds."""

from __future__ import annotations

from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from gradtrail.attribution.numerics.correlation import cosines, spearmans

_MOST_SPLITS = 35


def split_half_ceilings(by_seed: NDArray[np.float64]) -> tuple[float, float]:
    """Ceilings of Spearman and of cosine for the mean of `by_seed` (seeds, sets, queries) over at least two seeds.

    The agreement r between the means of two halves of the seeds (averaged over queries and over ways to halve)
    gives the reliability of the mean over all seeds, k·r / (1 + (k − 1)·r) (Spearman–Brown), where all seeds are k
    times as many as a half: 2 for an even number of seeds, more for an odd one, which leaves one seed out of both
    halves. The correlation of noiseless values with that mean is its square root.
    """
    count = len(by_seed)
    agreed = np.array(
        [(spearmans(first, second).mean(), cosines(first, second).mean()) for first, second in _halves(by_seed, count)]
    ).mean(0)
    longer = count / (count // 2)
    return _ceiling(float(agreed[0]), longer), _ceiling(float(agreed[1]), longer)


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


def _ceiling(agreement: float, longer: float) -> float:
    return float(np.sqrt(longer * agreement / (1 + (longer - 1) * agreement))) if agreement > 0 else 0.0
