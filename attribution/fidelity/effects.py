"""Effects of leaving examples out of further training, with their noise (METHODS: the gold standard)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from gradtrail.attribution.fidelity.noise_ceilings import NoiseCeiling, split_half_ceilings
from gradtrail.attribution.numerics.correlation import centred
from gradtrail.errors import UsageError

EffectKind = Literal["subset", "loo"]


@dataclass(frozen=True)
class Effects:
    """Measured effects: positive where leaving the set out raises the loss of the query.

    `by_seed` is (seeds, amounts, sets, queries) float64: loss without the set minus loss with all data. `steps` are the
    amounts of training; `kind` says whether the sets are random halves (`subset`) or single examples (`loo`).
    """

    kind: EffectKind
    removed: tuple[frozenset[str], ...]
    query_ids: tuple[str, ...]
    steps: tuple[int, ...]
    by_seed: NDArray[np.float64]
    _ceilings: dict[tuple[int, ...], NoiseCeiling] = field(default_factory=dict, init=False, repr=False, compare=False)

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

    def ceiling(self, steps: int, queries: Sequence[int] | None = None) -> NoiseCeiling:
        """What a perfect predictor could reach against these noisy means."""
        chosen = list(range(len(self.query_ids))) if queries is None else list(queries)
        known = (steps, *chosen)
        if known not in self._ceilings:
            self._ceilings[known] = split_half_ceilings(self.by_seed[:, self.amount(steps)][:, :, chosen])
        return self._ceilings[known]


def check_sets(removed: Sequence[frozenset[str]], kind: EffectKind | None = None) -> None:
    """Refuse sets that cannot be ranked, or that are not of their kind.

    Raises:
        UsageError: for fewer than two sets, empty sets, sets that are all equal, or sets of several examples called
            `loo`.
    """
    if len(removed) < 2 or not all(removed):  # noqa: PLR2004 (one effect has no rank)
        raise UsageError(f"{len(removed)} sets to leave out, or an empty one.", "Give at least two, none empty.")
    if len(set(removed)) == 1:
        raise UsageError(f"The {len(removed)} sets to leave out are all equal.", "Give sets that differ.")
    if kind is not None and (kind == "loo") != all(len(without) == 1 for without in removed):
        raise UsageError(
            f"Sets of up to {max(map(len, removed))} examples for effects of kind {kind}.",
            "Leave single examples out for loo, and larger sets for subset; the two figures are never mixed.",
        )
