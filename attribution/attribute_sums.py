"""Attribute values of examples, and the mass of scores that falls on each, gathered batch by batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gradtrail.attribution.features import FeatureRows
from gradtrail.nouns import Side

SIDES: tuple[Side, Side] = ("proponent", "opponent")


class AttributeSums:
    """Mass per side, attribute and value, and how many examples have the value."""

    def __init__(self, queries: int) -> None:
        self._queries = queries
        self._values: dict[str, _Values] = {}
        self._masses: dict[Side, dict[str, _Rows]] = {side: {} for side in SIDES}
        self._seen = 0
        self._totals = {side: np.zeros(queries) for side in SIDES}

    @property
    def counts(self) -> dict[str, dict[str, int]]:
        """Number of examples by attribute and value, "" where it is missing."""
        return {name: known.counts() for name, known in self._values.items()}

    def add(self, batch: FeatureRows, parts: Mapping[Side, NDArray[np.float64]]) -> None:
        for name in [*self._values, *(name for name in batch.attributes if name not in self._values)]:
            if name not in self._values:
                self._begin(name)
            known = self._values[name]
            present, positions = _present(known.codes(_values(batch, name)), len(known))
            for side, part in parts.items():
                rows = self._masses[side][name].at_least(len(known))
                # Each value occurs once in `present`, so that adding by index adds every sum.
                rows[present] += _sum_by_code(part, positions, len(present))
        self._seen += len(batch.example_ids)
        for side, part in parts.items():
            self._totals[side] += part.sum(1)

    def masses(self) -> dict[Side, dict[str, dict[str, Tensor]]]:
        return {
            side: {
                name: dict(zip(known.names(), torch.from_numpy(by_name[name].at_least(len(known))), strict=False))
                for name, known in self._values.items()
            }
            for side, by_name in self._masses.items()
        }

    def _begin(self, name: str) -> None:
        """An attribute that first appears now was missing in every earlier example."""
        self._values[name] = _Values(missing=self._seen)
        for side in SIDES:
            self._masses[side][name] = _Rows(self._queries)
            if self._seen:
                self._masses[side][name].at_least(1)[0] = self._totals[side]


class AttributeCodes:
    """Attribute values of every row as integers, in the order of the rows."""

    def __init__(self, names: Sequence[str]) -> None:
        self._values = {name: _Values() for name in names}
        self._codes: dict[str, list[NDArray[np.int32]]] = {name: [] for name in names}

    @property
    def values(self) -> dict[str, dict[str, int]]:
        """The number of each value, by attribute."""
        return {name: known.numbers() for name, known in self._values.items()}

    def add(self, batch: FeatureRows) -> None:
        for name, known in self._values.items():
            self._codes[name].append(known.codes(_values(batch, name)))

    def codes(self, name: str) -> NDArray[np.int32]:
        return np.concatenate(self._codes[name])

    def counts(self) -> dict[str, dict[str, int]]:
        return {name: known.counts() for name, known in self._values.items() if len(known)}


class _Values:
    """Numbers for the values of one attribute, in the order in which they first appear, and how often each occurs."""

    def __init__(self, missing: int = 0) -> None:
        self._numbers: dict[str, int] = {"": 0} if missing else {}
        self._counts = np.full(len(self._numbers), missing, dtype=np.int64)

    def __len__(self) -> int:
        return len(self._numbers)

    def codes(self, values: Sequence[str]) -> NDArray[np.int32]:
        """The number of each value; counts it."""
        numbers = self._numbers
        try:
            codes = np.fromiter(map(numbers.__getitem__, values), np.int32, len(values))
        except KeyError:
            for value in dict.fromkeys(values):
                numbers.setdefault(value, len(numbers))
            codes = np.fromiter(map(numbers.__getitem__, values), np.int32, len(values))
        found = np.bincount(codes, minlength=len(numbers))
        found[: len(self._counts)] += self._counts
        self._counts = found
        return codes

    def names(self) -> list[str]:
        return list(self._numbers)

    def numbers(self) -> dict[str, int]:
        return dict(self._numbers)

    def counts(self) -> dict[str, int]:
        return dict(zip(self._numbers, self._counts.tolist(), strict=True))


class _Rows:
    """A matrix (values, queries) of zeros that grows."""

    def __init__(self, queries: int) -> None:
        self._rows = np.zeros((0, queries))

    def at_least(self, count: int) -> NDArray[np.float64]:
        """The matrix, with room for `count` values or more."""
        if count > len(self._rows):
            grown = np.zeros((max(count, 2 * len(self._rows)), self._rows.shape[1]))
            grown[: len(self._rows)] = self._rows
            self._rows = grown
        return self._rows


def _present(codes: NDArray[np.int32], known: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Some codes with all that occur, each once, and the place of each of `codes` among them."""
    if known <= len(codes):
        return np.arange(known), codes.astype(np.intp)
    present, positions = np.unique(codes, return_inverse=True)
    return present.astype(np.intp), positions


def _sum_by_code(part: NDArray[np.float64], codes: NDArray[np.intp], size: int) -> NDArray[np.float64]:
    """Sums of the columns of `part` (queries, batch) by code: (size, queries)."""
    return np.stack([np.bincount(codes, row, size) for row in part], axis=1)


def _values(batch: FeatureRows, name: str) -> Sequence[str]:
    return batch.attributes.get(name) or [""] * len(batch.example_ids)
