"""Effects of leaving examples out of further training, with their noise (METHODS: the gold standard)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from gradtrail.attribution.correlation import centred, cosines, spearmans
from gradtrail.errors import UsageError

EffectKind = Literal["subset", "loo"]
_MOST_SPLITS = 35


@dataclass(frozen=True)
class Effects:
    """Measured effects: positive where leaving the set out raises the loss of the query.

    `by_seed` is (seeds, amounts, sets, queries) float64: loss without the set minus loss with all data. `steps` are the
    amounts of training; `kind` says whether the sets are random halves (`subset`) or single examples (`loo`).
    """

    kind: EffectKind
    left_out: tuple[frozenset[str], ...]
    query_ids: tuple[str, ...]
    steps: tuple[int, ...]
    by_seed: NDArray[np.float64]

    @property
    def mean(self) -> NDArray[np.float64]:
        """Mean over seeds, centred over the sets: (amounts, sets, queries)."""
        return centred(self.by_seed.mean(0), axis=1)

    @property
    def standard_error(self) -> NDArray[np.float64]:
        """Of the mean over seeds: (amounts, sets, queries)."""
        spread: NDArray[np.float64] = centred(self.by_seed, axis=2).std(0, ddof=1) / np.sqrt(len(self.by_seed))
        return spread

    def amount(self, steps: int) -> int:
        """The place of an amount of training among `steps`.

        Raises:
            UsageError: for an amount that was not measured.
        """
        if steps not in self.steps:
            raise UsageError(f"Nothing was measured after {steps} steps.", f"Choose one of {list(self.steps)}.")
        return self.steps.index(steps)

    def ceilings(self, steps: int, queries: Sequence[int] | None = None) -> tuple[float, float]:
        """What a perfect predictor could reach against these noisy means, as Spearman and as cosine.

        The agreement r between the means of two halves of the seeds (averaged over queries and over ways to halve)
        gives the reliability of the mean over all seeds, 2r / (1 + r) (Spearman–Brown); the correlation of noiseless
        effects with that mean is its square root.
        """
        chosen = list(range(len(self.query_ids))) if queries is None else list(queries)
        effects = self.by_seed[:, self.amount(steps)][:, :, chosen]
        agreed = np.array(
            [
                (_mean(spearmans(first, second)), _mean(cosines(first, second)))
                for first, second in _halves(effects, len(self.by_seed))
            ]
        ).mean(0)
        rank, angle = (_ceiling(float(agreement)) for agreement in agreed)
        return rank, angle


def check_sets(left_out: Sequence[frozenset[str]], kind: EffectKind) -> None:
    """Refuse sets that cannot be ranked, or that are not of their kind.

    Raises:
        UsageError: for fewer than two sets, empty sets, or sets of several examples called `loo`.
    """
    if len(left_out) < 2 or not all(left_out):  # noqa: PLR2004 (one effect has no rank)
        raise UsageError(f"{len(left_out)} sets to leave out, or an empty one.", "Give at least two, none empty.")
    if (kind == "loo") != all(len(without) == 1 for without in left_out):
        raise UsageError(
            f"Sets of up to {max(map(len, left_out))} examples for effects of kind {kind}.",
            "Leave single examples out for loo, and larger sets for subset; the two figures are never mixed.",
        )


def _halves(effects: NDArray[np.float64], count: int) -> list[tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Means over two halves of the seeds, (sets, queries) each, for every way to halve them (or some of many)."""
    half = count // 2
    ways = [way for way in combinations(range(count), half) if 2 * half < count or 0 in way]
    if len(ways) > _MOST_SPLITS:
        ways = [ways[place] for place in np.linspace(0, len(ways) - 1, _MOST_SPLITS).round().astype(int)]
    pairs = []
    for way in ways:
        rest = [seed for seed in range(count) if seed not in way][:half]
        pairs.append((effects[list(way)].mean(0), effects[rest].mean(0)))
    return pairs


def _mean(values: NDArray[np.float64]) -> float:
    return float(values.mean())


def _ceiling(agreement: float) -> float:
    return float(np.sqrt(2 * agreement / (1 + agreement))) if agreement > 0 else 0.0
