"""What shares chance alone would give: intervals that hold for all tested values of an attribute together.

Each value's share is set against the gamma distribution that has the mean and variance of its share when the attribute
is shuffled over the examples: a scale on which values of one example and of thousands can be compared. How extreme the
most extreme of all tested values is, in each shuffle, says how wide the intervals must be (Westfall and Young's min-P).
Scale and choice of values depend on their sizes alone, not on their shares, so that the bound holds whatever the gamma
distribution misses.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil

import numpy as np
import torch
from numpy.typing import NDArray

from gradtrail.attribution.scoring.attribute_sums import AttributeCodes

MOST_TESTED = 1000
"""Values per attribute that get an interval, those with the most examples."""
INTERVALS_TOGETHER = "of all tested values together"
"""What an audit notes about its intervals; before, each value had one of its own."""
_EACH_SIDE = 0.025
_BISECTIONS = 60
_ROUNDING = 1e-12

Vector = NDArray[np.float64]


@dataclass(frozen=True)
class IntervalShare:
    """A share and the interval it would lie in by chance; None where no interval was measured."""

    share: float
    low: float | None
    high: float | None


def interval_shares(
    masses: Vector, codes: AttributeCodes, permutations: int, seed: int
) -> dict[str, dict[str, IntervalShare]]:
    """Share and interval of each value of each attribute, from the mass of every example (examples,).

    In 95 % of shuffles no tested value of an attribute leaves its interval, 2.5 % on either side.
    """
    generator = np.random.default_rng(seed)
    tested = {name: _Tested.of(codes.codes(name), len(known), masses) for name, known in codes.values.items()}
    for _ in range(permutations):
        shuffled = generator.permutation(masses)
        for each in tested.values():
            each.add(shuffled)
    found: dict[str, dict[str, IntervalShare]] = {}
    for name, known in codes.values.items():
        bounds = dict(tested[name].bounds()) if permutations else {}
        actual = tested[name].shares
        found[name] = {
            value: IntervalShare(float(actual[code]), *bounds.get(code, (None, None))) for value, code in known.items()
        }
    return found


@dataclass(frozen=True)
class _Tested:
    """The values of one attribute that are tested, by code, and the most extreme of them in each shuffle so far."""

    numbers: NDArray[np.int32]
    shares: Vector
    chosen: NDArray[np.int64]
    total: float
    means: Vector
    shapes: Vector
    empty: Vector
    extremes: list[tuple[float, float]]

    @classmethod
    def of(cls, numbers: NDArray[np.int32], known: int, masses: Vector) -> _Tested:
        examples, total = len(masses), float(masses.sum())
        counts = np.bincount(numbers, minlength=known)
        chosen = np.argsort(-counts, kind="stable")[:MOST_TESTED]
        sizes = counts[chosen].astype(np.float64)
        means = sizes / max(examples, 1) * total
        # Of a sum over so many examples drawn without replacement.
        drawn = sizes * (examples - sizes) / max(examples * (examples - 1), 1)
        variances = drawn * np.square(masses - masses.mean()).sum() if examples else drawn
        varies = variances > np.square(_ROUNDING * total)
        shapes = np.divide(np.square(means), variances, out=np.zeros_like(means), where=varies)
        empty = np.power(np.count_nonzero(masses == 0) / max(examples, 1), sizes)
        shares = _sums(numbers, masses, known)
        return cls(numbers, shares, chosen, total, means, shapes, empty, [])

    def add(self, shuffled: Vector) -> None:
        """Remember the smallest probabilities, from above and from below, of this shuffle's shares."""
        varying = self.shapes > 0
        if varying.any():
            shares = _sums(self.numbers, shuffled, len(self.shares))
            above, below = self._probabilities(shares[self.chosen])
            self.extremes.append((float(above[varying].min()), float(below[varying].min())))

    def bounds(self) -> Iterator[tuple[int, tuple[float, float]]]:
        """Code and interval of each tested value; one whose share no shuffle changes has no width."""
        own = self.shares[self.chosen]
        low, high = own.copy(), own.copy()
        varying = self.shapes > 0
        if self.extremes:
            # The rank that makes the level exact when what was observed is counted as one more shuffle.
            place = max(len(self.extremes) - ceil((1 - _EACH_SIDE) * (len(self.extremes) + 1)), 0)
            least_above, least_below = np.sort(np.array(self.extremes), axis=0)[place]
            low[varying] = self._where(1, float(least_below))[varying]
            high[varying] = self._where(0, float(least_above))[varying]
        yield from zip(self.chosen.tolist(), zip(low.tolist(), high.tolist(), strict=True), strict=True)

    def _probabilities(self, shares: Vector) -> tuple[Vector, Vector]:
        """Of a share at least as large, and of one at most as large, for each tested value."""
        scaled = np.divide(shares * self.shapes, self.means, out=np.zeros_like(shares), where=self.means > 0)
        shapes, places = torch.from_numpy(self.shapes), torch.from_numpy(scaled)
        above: Vector = torch.special.gammaincc(shapes, places).numpy()
        below: Vector = torch.special.gammainc(shapes, places).numpy()
        # A gamma variable is never 0, but all examples of a small value may be without mass.
        return above, np.maximum(below, self.empty)

    def _where(self, side: int, probability: float) -> Vector:
        """The shares at which the probability from above (side 0) or from below (side 1) is this one."""
        low, high = np.zeros_like(self.means), np.full_like(self.means, self.total)
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            further = (self._probabilities(middle)[side] > probability) == (side == 0)
            low, high = np.where(further, middle, low), np.where(further, high, middle)
        return high if side == 0 else low


def _sums(numbers: NDArray[np.int32], masses: Vector, known: int) -> Vector:
    return np.bincount(numbers, masses, known).astype(np.float64, copy=False)
