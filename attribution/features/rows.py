"""Batches of gradients: what one batch of examples measures, and what every method reads."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class GradientBatch:
    """Gradients of one batch, unweighted as computed, or weighted as stored (see `attribution.features.weights`).

    `vectors` (batch, dimension) in the plan's type, `losses` (batch,) float64, `squared_norms` (batch, groups) float64
    of the unweighted vectors, and `attributes` as one sequence of text per name, with "" where an example has none.
    """

    example_ids: Sequence[str]
    vectors: Tensor
    losses: Tensor
    squared_norms: Tensor
    attributes: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @staticmethod
    def joined(parts: Sequence[GradientBatch]) -> GradientBatch:
        """The rows of several batches, at least one, without their attributes."""
        return GradientBatch(
            example_ids=[example_id for part in parts for example_id in part.example_ids],
            vectors=torch.cat([part.vectors for part in parts]),
            losses=torch.cat([part.losses for part in parts]),
            squared_norms=torch.cat([part.squared_norms for part in parts]),
        )

    @property
    def columns(self) -> int:
        """Number of columns of the vectors."""
        return self.vectors.shape[1]

    def pieces(self) -> Iterator[Tensor]:
        """The vectors in order, here whole; a store may hand them over a few rows at a time."""
        yield self.vectors


class StoredArrays(Protocol):
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


class StoredGradients(GradientBatch):
    """A batch of a store. A scoring pass takes its vectors in pieces, and they are never widened whole."""

    _stored: StoredArrays

    def __init__(self, stored: StoredArrays) -> None:
        parts = {
            "_stored": stored,
            "example_ids": stored.example_ids,
            "losses": view(stored.losses),
            "squared_norms": view(stored.squared_norms),
            "attributes": stored.attributes,
        }
        # As the frozen base class does it in its own __init__, which would ask for the vectors.
        vars(self).update(parts)

    @cached_property
    def vectors(self) -> Tensor:
        """(batch, dimension) float32, widened when first asked for."""
        return view(self._stored.vectors)

    @property
    def columns(self) -> int:
        """Number of columns of the vectors, without widening them."""
        return self._stored.shape[1]

    def pieces(self) -> Iterator[Tensor]:
        """The vectors in order, a few rows at a time."""
        return map(view, self._stored.pieces())


def view(array: NDArray[Any]) -> Tensor:
    """An array as a tensor of the same memory, which may be read-only."""
    if array.flags.writeable:
        return torch.from_numpy(array)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)
