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
        self.counts: dict[str, dict[str, int]] = {}
        self._queries = queries
        self._masses: dict[Side, dict[str, dict[str, NDArray[np.float64]]]] = {side: {} for side in SIDES}
        self._seen = 0
        self._totals = {side: np.zeros(queries) for side in SIDES}

    def add(self, batch: FeatureRows, parts: Mapping[Side, NDArray[np.float64]]) -> None:
        for name in [*self.counts, *(name for name in batch.attributes if name not in self.counts)]:
            if name not in self.counts:
                self._begin(name)
            values, codes = np.unique(_values(batch, name), return_inverse=True)
            sizes = np.bincount(codes, minlength=len(values))
            for position, value in enumerate(values.tolist()):
                self.counts[name][value] = self.counts[name].get(value, 0) + int(sizes[position])
            for side, part in parts.items():
                masses = self._masses[side][name]
                for value, mass in zip(values.tolist(), _sum_by_code(part, codes, len(values)), strict=True):
                    masses[value] = masses[value] + mass if value in masses else mass
        self._seen += len(batch.example_ids)
        for side, part in parts.items():
            self._totals[side] += part.sum(1)

    def _begin(self, name: str) -> None:
        """An attribute that first appears now was missing in every earlier example."""
        self.counts[name] = {"": self._seen} if self._seen else {}
        for side in SIDES:
            self._masses[side][name] = {"": self._totals[side].copy()} if self._seen else {}

    def masses(self) -> dict[Side, dict[str, dict[str, Tensor]]]:
        return {
            side: {
                name: {value: torch.from_numpy(mass) for value, mass in values.items()}
                for name, values in by_name.items()
            }
            for side, by_name in self._masses.items()
        }


class AttributeCodes:
    """Attribute values of every row as integers, in the order of the rows."""

    def __init__(self, names: Sequence[str]) -> None:
        self.values: dict[str, dict[str, int]] = {name: {} for name in names}
        self._codes: dict[str, list[NDArray[np.int32]]] = {name: [] for name in names}

    def add(self, batch: FeatureRows) -> None:
        for name, known in self.values.items():
            values, codes = np.unique(_values(batch, name), return_inverse=True)
            numbers = [known.setdefault(value, len(known)) for value in values.tolist()]
            self._codes[name].append(np.asarray(numbers, dtype=np.int32)[codes])

    def codes(self, name: str) -> NDArray[np.int32]:
        return np.concatenate(self._codes[name])

    def counts(self) -> dict[str, dict[str, int]]:
        return {
            name: dict(zip(known, np.bincount(self.codes(name), minlength=len(known)).tolist(), strict=True))
            for name, known in self.values.items()
            if known
        }


def _sum_by_code(part: NDArray[np.float64], codes: NDArray[np.int64], size: int) -> NDArray[np.float64]:
    """Sums of the columns of `part` (queries, batch) by code: (size, queries)."""
    sums = np.zeros((size, part.shape[0]))
    np.add.at(sums, codes, part.T)
    return sums


def _values(batch: FeatureRows, name: str) -> list[str]:
    return batch.attributes.get(name) or [""] * len(batch.example_ids)
