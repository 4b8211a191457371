"""Where the examples stand in the tensors of a batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Size, Tensor

from gradtrail.attribution.adapters.base import Batch, ModelAdapter
from gradtrail.nouns import Example


@dataclass(frozen=True)
class BatchLayout:
    """For each tensor of a batch, in the order of `Batch.tensors`, the dimension of the example.

    None stands for a tensor that all examples share: a mask, positions, a graph.
    """

    dimensions: tuple[int | None, ...]

    @classmethod
    def between(cls, lone: Batch, pair: Batch) -> BatchLayout | None:
        """What `collate` does, read from batches of one example and of the same one twice; a length would not tell.

        None where examples do not lie side by side in every tensor, such as words of all texts in one long row.
        """
        one, two = lone.tensors(), pair.tensors()
        if len(one) != len(two):
            return None
        dimensions: list[int | None] = []
        for single, double in zip(one, two, strict=True):
            grown = grown_dimension(single.shape, double.shape)
            if single.shape[grown] != 1 if grown is not None else single.shape != double.shape:
                return None
            dimensions.append(grown)
        return cls(tuple(dimensions))

    @classmethod
    def of(cls, adapter: ModelAdapter, example: Example) -> BatchLayout | None:
        """As `between`, of batches that the adapter makes of `example`."""
        return cls.between(adapter.collate([example]), adapter.collate([example, example]))

    def fits(self, batch: Batch, size: int) -> bool:
        """Whether `batch` holds `size` examples in this way."""
        tensors = batch.tensors()
        return len(tensors) == len(self.dimensions) and all(
            dimension is None or (tensor.ndim > dimension and tensor.shape[dimension] == size)
            for tensor, dimension in zip(tensors, self.dimensions, strict=True)
        )

    def change(self, batch: Batch, change: Callable[[Tensor, int], Tensor]) -> Batch:
        """The batch with every tensor changed that has an example dimension, which `change` is told."""
        dimensions = iter(self.dimensions)

        def changed(tensor: Tensor) -> Tensor:
            dimension = next(dimensions)
            return tensor if dimension is None else change(tensor, dimension)

        return batch.with_each(changed)

    def rows(self, batch: Batch, places: Tensor) -> Batch:
        """The examples at `places` (numbers); what all share stays whole."""
        return self.change(batch, lambda tensor, dimension: tensor.index_select(dimension, places.to(tensor.device)))


def grown_dimension(lone: Size, pair: Size) -> int | None:
    """The only dimension that is twice as long in `pair` as in `lone`; None where they differ otherwise."""
    if len(lone) != len(pair):
        return None
    grown = [place for place, sizes in enumerate(zip(lone, pair, strict=True)) if sizes[0] != sizes[1]]
    return grown[0] if len(grown) == 1 and pair[grown[0]] == 2 * lone[grown[0]] else None
