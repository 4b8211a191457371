"""Rows of features: what one batch of examples measures, and what every method reads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class FeatureRows:
    """Features of one batch, unweighted as computed, or weighted as stored (see `attribution.features.weights`).

    `vectors` (batch, dimension) in the plan's type, `losses` (batch,) float64, `squared_norms` (batch, groups) float64
    of the unweighted vectors, and `attributes` as one sequence of text per name, with "" where an example has none.
    """

    example_ids: Sequence[str]
    vectors: Tensor
    losses: Tensor
    squared_norms: Tensor
    attributes: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @staticmethod
    def joined(parts: Sequence[FeatureRows]) -> FeatureRows:
        """The rows of several batches, at least one, without their attributes."""
        return FeatureRows(
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
