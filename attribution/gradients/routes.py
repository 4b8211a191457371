"""How each group of a plan is measured: by its layer rule, where the calls of the layer allow it, or by autograd.

A rule needs to know where the examples stand in what a layer sees. One example and the same example twice tell it: what
grows with them belongs to examples. A gradient measured both ways tells whether the rule is right.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from gradtrail.attribution.adapters.base import Batch
from gradtrail.attribution.adapters.layout import BatchLayout, grown_dimension
from gradtrail.attribution.gradients.fallback import Fallback

Shapes = tuple[torch.Size, torch.Size]
"""Of the input and the output of one call."""


@dataclass(frozen=True)
class CallLayout:
    """Where the examples stand in input and output of a layer's calls.

    In dimension `dimension`, one beside the other; or where `each` is given as so many rows of the first dimension,
    one example after another; or, without a dimension, nowhere: the call is made once for all examples, `in_a_row` says
    whether with a first dimension of length 1. `by_position` says that the rows of one example are the positions of the
    batch, however many there are.
    """

    dimension: int | None = 0
    each: int = 1
    by_position: bool = False
    in_a_row: bool = False

    @property
    def is_shared(self) -> bool:
        """Whether the layer runs once for all examples."""
        return self.dimension is None

    def fits(self, value: Tensor, size: int, positions: frozenset[int]) -> bool:
        """Whether an input or output of a batch of `size` examples is laid out like this."""
        if self.dimension is None:
            return not self.in_a_row or (value.ndim > 1 and len(value) == 1)
        # Token ids may be one-dimensional; anything else has features beside the examples.
        least = 2 if value.is_floating_point() else 1
        if value.ndim < max(least, self.dimension + 1):
            return False
        length = value.shape[self.dimension]
        if self.each == 1:
            return length == size
        if length % size:
            return False
        return length // size == self.each or (self.by_position and length // size in positions)

    def by_example(self, values: Tensor, size: int) -> Tensor:
        """Values with the examples as their first dimension; rows of one example become positions."""
        if self.dimension is None:
            return self.expanded(values, size)
        if self.each > 1:
            return values.reshape(size, -1, *values.shape[1:])
        return values.movedim(self.dimension, 0) if self.dimension else values

    def expanded(self, values: Tensor, size: int) -> Tensor:
        """What is the same for all examples, once for each of them."""
        one = values if self.in_a_row else values.unsqueeze(0)
        return one.expand(size, *one.shape[1:])


ROWS = CallLayout()


@dataclass(frozen=True)
class Routes:
    """`layouts` by the names of layers that a rule measures; groups at the places `by_autograd` are left to `fallback`.

    Parameters at the places `by_use` have no layer with a rule, and are measured where they meet the examples
    (`gradtrail.attribution.gradients.parameter_uses`).

    `batch` says where the examples of a batch stand; None where its tensors do not tell. `dtype` is the type with the
    fewest digits that the model computes in.
    """

    layouts: Mapping[str, CallLayout] = field(default_factory=dict)
    by_autograd: frozenset[int] = frozenset()
    by_use: frozenset[int] = frozenset()
    fallback: Fallback | None = None
    batch: BatchLayout | None = None
    dtype: torch.dtype = torch.float32

    def shares(self, name: str) -> bool:
        """Whether a rule measures calls of the layer `name` that are made once for all examples."""
        return name in self.layouts and self.layouts[name].is_shared


def positions_of(batch: Batch, layout: BatchLayout | None) -> frozenset[int]:
    """How many positions the batch's own tensors have: the lengths that follow the example's dimension."""
    if layout is None:
        return frozenset()
    pairs = zip(batch.tensors(), layout.dimensions, strict=False)
    return frozenset(tensor.shape[1] for tensor, dimension in pairs if dimension == 0 and tensor.ndim > 1)


def call_layout(
    lone: Sequence[Shapes], pair: Sequence[Shapes], positions: frozenset[int], sequential: bool
) -> CallLayout | None:
    """The layout that all calls of a layer have, from those for one example and for the same example twice.

    None where there is not one, or a rule could not follow it: `sequential` rules take any number of positions.
    """
    if not lone or len(lone) != len(pair):
        return None
    found = {_layout(*shapes) for call in zip(lone, pair, strict=True) for shapes in zip(*call, strict=True)}
    if len(found) != 1:
        return None
    layout = found.pop()
    if layout is None or (layout != ROWS and not sequential):
        return None
    if layout.dimension and any(len(output) <= layout.dimension + 1 for _, output in lone):
        return None
    return replace(layout, by_position=layout.each in positions) if layout.each > 1 else layout


def _layout(lone: torch.Size, pair: torch.Size) -> CallLayout | None:
    if lone == pair:
        return CallLayout(None, in_a_row=len(lone) > 1 and lone[0] == 1)
    grown = grown_dimension(lone, pair)
    if grown is None:
        return None
    if lone[grown] == 1:
        return CallLayout(grown)
    return CallLayout(0, lone[0]) if grown == 0 else None
