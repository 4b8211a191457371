"""The k largest positive scores seen so far, per column, with a total order: score first, then example id."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


class RunningTop:
    """Feed batches in any order and any size: the result depends only on the scores and ids."""

    def __init__(self, columns: int, size: int) -> None:
        self._size = size
        self._kept: list[list[tuple[float, str]]] = [[] for _ in range(columns)]
        self._floors = np.zeros(columns)

    def add(self, scores: NDArray[np.floating], example_ids: Sequence[str]) -> None:
        """Scores (batch, columns) of `example_ids`; only positive ones count.

        Most batches only compare: an id is read where a score reaches the last place of its column, or ties with it.
        """
        if self._size == 0:
            return
        # In the type of the scores, which a floor is one of: the comparison reads them as they are.
        least = np.finfo(scores.dtype).smallest_subnormal
        places = np.flatnonzero(scores >= np.maximum(self._floors.astype(scores.dtype), least))
        if len(places) > 4 * self._size * len(self._floors) and len(scores) > self._size:
            # So many hold only before the floors are known: the batch's own last places raise them first.
            lasts = np.partition(scores, -self._size, axis=0)[-self._size]
            np.maximum(self._floors, lasts, out=self._floors)
            places = np.flatnonzero(scores >= np.maximum(self._floors.astype(scores.dtype), least))
        if len(places) > len(example_ids):
            example_ids = list(example_ids)
        rows, columns = np.divmod(places, len(self._floors))
        values = scores[rows, columns].tolist()
        for row, column, value in zip(rows.tolist(), columns.tolist(), values, strict=True):
            kept = self._kept[column]
            kept.append((-value, example_ids[row]))
            if len(kept) > 2 * self._size:
                self._cut(column)

    def best(self) -> list[list[tuple[str, float]]]:
        """Per column (example_id, score), largest first, ties by id."""
        for column in range(len(self._kept)):
            self._cut(column)
        return [[(example_id, -negated) for negated, example_id in kept] for kept in self._kept]

    def _cut(self, column: int) -> None:
        kept = self._kept[column] = sorted(self._kept[column])[: self._size]
        if len(kept) == self._size and self._size:
            self._floors[column] = max(self._floors[column], -kept[-1][0])
