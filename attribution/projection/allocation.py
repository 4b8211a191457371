"""How many numbers each parameter group may keep, when all of them together have a budget."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt

from gradtrail.errors import UsageError

SMALLEST = 4
"""Fewer numbers say next to nothing about a group that has more."""
_HALVINGS = 60


def allocate(sizes: Sequence[int], budget: int) -> list[int]:
    """Dimensions that add up to at most `budget`: proportional to √size, from `SMALLEST` to the size itself.

    The square root stands between equal shares, which starve large layers, and shares by size, which leave nothing to
    small ones. What a small group does not need goes to the others.

    Raises:
        UsageError: when the budget does not reach the smallest dimension of every group.
    """
    least = [min(size, SMALLEST) for size in sizes]
    if budget < sum(least):
        raise UsageError(
            f"A total dimension of {budget} is too small for {len(sizes)} parameter groups.",
            f"Give at least {sum(least)} ({SMALLEST} a group), or leave layers out with FeatureSettings.exclude.",
        )

    def shares(scale: float) -> list[int]:
        return [max(low, min(size, int(scale * sqrt(size)))) for size, low in zip(sizes, least, strict=True)]

    low, high = 0.0, sqrt(max(sizes)) + 1
    if sum(shares(high)) <= budget:
        return shares(high)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if sum(shares(middle)) <= budget else (low, middle)
    return shares(low)
