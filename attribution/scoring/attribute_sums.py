"""Attribute values of examples, and the mass of scores that falls on each, gathered batch by batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gradtrail.attribution.features.rows import GradientBatch
from gradtrail.nouns import Side

SIDES: tuple[Side, Side] = ("proponent", "opponent")


@runtime_checkable
class CodedText(Protocol):
    """Text of a batch as `codes` (batch,) into its `distinct` values; a store may hand attributes over so."""

    codes: NDArray[np.int32]
    distinct: list[str]


class AttributeSums:
    """Mass per side, attribute and value, and how many examples have the value."""

    def __init__(self, queries: int) -> None:
        self._queries = queries
        self._values: dict[str, _Values] = {}
        self._masses: dict[str, _Rows] = {}
        self._seen = 0
        self._totals = torch.zeros(len(SIDES) * queries, dtype=torch.float64)

    @property
    def counts(self) -> dict[str, dict[str, int]]:
        """Number of examples by attribute and value, "" where it is missing."""
        return {name: known.counts() for name, known in self._values.items()}

    def add(self, batch: GradientBatch, sided: Tensor) -> None:
        """Add `sided` (batch, 2 × queries) float64: absolute scores, first of proponents, then of opponents."""
        for name in [*self._values, *(name for name in batch.attributes if name not in self._values)]:
            if name not in self._values:
                self._begin(name)
            known = self._values[name]
            codes = known.codes(_values(batch, name))
            self._masses[name].at_least(len(known)).index_add_(0, torch.from_numpy(codes.astype(np.int64)), sided)
        self._seen += len(batch.example_ids)
        self._totals += sided.sum(0)

    def totals(self) -> dict[Side, Tensor]:
        """Mass per side over all examples, (queries,)."""
        return dict(zip(SIDES, torch.split(self._totals, self._queries), strict=True))

    def masses(self) -> dict[Side, dict[str, dict[str, Tensor]]]:
        found: dict[Side, dict[str, dict[str, Tensor]]] = {side: {} for side in SIDES}
        for name, known in self._values.items():
            by_side = torch.split(self._masses[name].at_least(len(known)), self._queries, dim=1)
            for side, rows in zip(SIDES, by_side, strict=True):
                found[side][name] = dict(zip(known.names(), rows, strict=False))
        return found

    def _begin(self, name: str) -> None:
        """An attribute that first appears now was missing in every earlier example."""
        self._values[name] = _Values(missing=self._seen)
        self._masses[name] = _Rows(len(SIDES) * self._queries)
        if self._seen:
            self._masses[name].at_least(1)[0] = self._totals


class AttributeCodes:
    """Attribute values of every row as integers, in the order of the rows."""

    def __init__(self, names: Sequence[str]) -> None:
        self._values = {name: _Values() for name in names}
        self._codes: dict[str, list[NDArray[np.int32]]] = {name: [] for name in names}

    @property
    def values(self) -> dict[str, dict[str, int]]:
        """The number of each value, by attribute."""
        return {name: known.numbers() for name, known in self._values.items()}

    def add(self, batch: GradientBatch) -> None:
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
        if isinstance(values, CodedText):
            by_code = [numbers.setdefault(value, len(numbers)) for value in values.distinct]
            return self._counted(np.array(by_code, dtype=np.int32)[values.codes])
        try:
            codes = np.fromiter(map(numbers.__getitem__, values), np.int32, len(values))
        except KeyError:
            for value in dict.fromkeys(values):
                numbers.setdefault(value, len(numbers))
            codes = np.fromiter(map(numbers.__getitem__, values), np.int32, len(values))
        return self._counted(codes)

    def _counted(self, codes: NDArray[np.int32]) -> NDArray[np.int32]:
        found = np.bincount(codes, minlength=len(self._numbers))
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
    """A matrix (values, columns) of zeros that grows."""

    def __init__(self, columns: int) -> None:
        self._rows = torch.zeros((0, columns), dtype=torch.float64)

    def at_least(self, count: int) -> Tensor:
        """The matrix, with room for `count` values or more."""
        if count > len(self._rows):
            grown = torch.zeros((max(count, 2 * len(self._rows)), self._rows.shape[1]), dtype=torch.float64)
            grown[: len(self._rows)] = self._rows
            self._rows = grown
        return self._rows


def _values(batch: GradientBatch, name: str) -> Sequence[str]:
    return batch.attributes.get(name) or [""] * len(batch.example_ids)
