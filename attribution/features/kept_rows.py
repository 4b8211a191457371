"""Rows of an index whose vectors a store keeps in fewer bytes, widened only where they are asked for."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gradtrail.attribution.features.rows import FeatureRows


class KeptBatch(Protocol):
    """What a store hands over of B rows: vectors (B, D) float32, whole or a few rows at a time, and the rest of them.

    Arrays may be read-only: attribution reads them and writes nothing.
    """

    @property
    def example_ids(self) -> Sequence[str]: ...
    @property
    def losses(self) -> NDArray[np.float64]: ...
    @property
    def squared_norms(self) -> NDArray[np.float64]: ...
    @property
    def attributes(self) -> Mapping[str, Sequence[str]]: ...
    @property
    def shape(self) -> tuple[int, int]: ...
    @property
    def vectors(self) -> NDArray[np.float32]: ...
    def pieces(self) -> Iterator[NDArray[np.float32]]: ...


class KeptRows(FeatureRows):
    """A batch of a store as features. A scoring pass takes its vectors in pieces, and they are never widened whole."""

    _kept: KeptBatch

    def __init__(self, kept: KeptBatch) -> None:
        parts = {
            "_kept": kept,
            "example_ids": kept.example_ids,
            "losses": view(kept.losses),
            "squared_norms": view(kept.squared_norms),
            "attributes": kept.attributes,
        }
        # As the frozen base class does it in its own __init__, which would ask for the vectors.
        vars(self).update(parts)

    @cached_property
    def vectors(self) -> Tensor:
        """(batch, dimension) float32, widened when first asked for."""
        return view(self._kept.vectors)

    @property
    def columns(self) -> int:
        """Number of columns of the vectors, without widening them."""
        return self._kept.shape[1]

    def pieces(self) -> Iterator[Tensor]:
        """The vectors in order, a few rows at a time."""
        return map(view, self._kept.pieces())


def view(array: NDArray[Any]) -> Tensor:
    """An array as a tensor of the same memory, which may be read-only."""
    if array.flags.writeable:
        return torch.from_numpy(array)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)
