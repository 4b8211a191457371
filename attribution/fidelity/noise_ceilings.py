"""Noise ceilings: what a perfect prediction could reach against a mean over a few seeds."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from math import ceil, inf

import numpy as np
from numpy.typing import NDArray

from gradtrail.attribution.numerics.correlation import cosines, spearmans

_MOST_SPLITS = 35
_JACKKNIFE_SPLITS, _JACKKNIFE_GROUPS = 3, 12
"""For the error of the agreement: ways to halve the seeds, and parts of the sets that are left out in turn."""
_FEWEST_SETS = 4
"""Leaving one of fewer out leaves nothing to rank."""
_ERRORS_OFF_ZERO = 2.0


@dataclass(frozen=True)
class NoiseCeiling:
    """What a perfect prediction could reach, and the agreement of halves of the seeds that says so.

    Attributes:
        spearman: the ceiling of a rank correlation.
        cosine: of a cosine.
        seeds: how many were measured.
        agreement: mean Spearman between the means of two halves of the seeds.
        agreement_error: its standard error over the choice of left-out sets, by leaving each twelfth of them out
            once (jackknife); infinite for fewer than four sets.
    """

    spearman: float
    cosine: float
    seeds: int
    agreement: float
    agreement_error: float

    @property
    def spearman_error(self) -> float:
        """Standard error of the ceiling of a rank correlation, from that of the agreement (delta method)."""
        if self.agreement <= 0:
            return self.agreement_error
        longer = self.seeds / (self.seeds // 2)
        slope = longer / (2 * self.spearman * (1 + (longer - 1) * self.agreement) ** 2)
        return slope * self.agreement_error

    @property
    def stands(self) -> bool:
        """Whether the agreement is told from none: more than two standard errors above zero."""
        return self.agreement > _ERRORS_OFF_ZERO * self.agreement_error

    @property
    def seeds_that_would_do(self) -> int | None:
        """About how many seeds would lift the agreement to three standard errors, if its error stays as it is.

        None where nothing in what was measured says so: no agreement at all, or an error that no agreement outgrows.
        By Spearman–Brown, as the ceiling itself.
        """
        wanted, half = (_ERRORS_OFF_ZERO + 1) * self.agreement_error, self.seeds // 2
        if self.agreement <= 0 or wanted >= 1:
            return None
        of_one = self.agreement / (half - (half - 1) * self.agreement)
        return max(self.seeds + 1, 2 * ceil(wanted * (1 - of_one) / (of_one * (1 - wanted))))


def split_half_ceilings(by_seed: NDArray[np.float64]) -> NoiseCeiling:
    """Ceilings of Spearman and of cosine for the mean of `by_seed` (seeds, sets, queries) over at least two seeds.

    The agreement r between the means of two halves of the seeds (averaged over queries and over ways to halve)
    gives the reliability of the mean over all seeds, k·r / (1 + (k − 1)·r) (Spearman–Brown), where all seeds are k
    times as many as a half: 2 for an even number of seeds, more for an odd one, which leaves one seed out of both
    halves. The correlation of noiseless values with that mean is its square root.
    """
    count = len(by_seed)
    halves = _halves(by_seed, count)
    ranks = float(np.mean([spearmans(first, second).mean() for first, second in halves]))
    angles = float(np.mean([cosines(first, second).mean() for first, second in halves]))
    longer = count / (count // 2)
    return NoiseCeiling(_ceiling(ranks, longer), _ceiling(angles, longer), count, ranks, _jackknife_error(halves))


def _jackknife_error(halves: list[tuple[NDArray[np.float64], NDArray[np.float64]]]) -> float:
    """Standard error of the mean agreement, over the left-out sets, which all queries share."""
    halves, sets = halves[:: max(1, len(halves) // _JACKKNIFE_SPLITS)], len(halves[0][0])
    if sets < _FEWEST_SETS:
        return inf
    groups = np.array_split(np.arange(sets), min(sets, _JACKKNIFE_GROUPS))
    without = np.array(
        [
            np.mean([spearmans(np.delete(a, left, 0), np.delete(b, left, 0)).mean() for a, b in halves])
            for left in groups
        ]
    )
    return float(np.sqrt((len(groups) - 1) / len(groups) * ((without - without.mean()) ** 2).sum()))


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
