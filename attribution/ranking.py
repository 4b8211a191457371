"""The k largest positive scores seen so far, per query, with a total order: score first, then example id."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


class RunningTop:
    """Feed batches in any order and any size: the result depends only on the scores and ids."""

    def __init__(self, queries: int, size: int) -> None:
        self._size = size
        self._kept: list[list[tuple[float, str]]] = [[] for _ in range(queries)]
        self._floors = np.full(queries, np.finfo(np.float64).tiny)

    def add(self, scores: NDArray[np.float64], example_ids: Sequence[str]) -> None:
        """Scores (queries, batch) of `example_ids`; only positive ones count."""
        if self._size == 0:
            return
        candidates = scores >= self._floors[:, None]
        for query in np.flatnonzero(candidates.any(1)):
            rows = np.flatnonzero(candidates[query])
            values = scores[query, rows]
            if len(rows) > self._size:
                # Rows that tie with the last place stay in: the id decides.
                rows = rows[values >= np.partition(values, -self._size)[-self._size]]
            found = [(-float(scores[query, row]), example_ids[row]) for row in rows.tolist()]
            kept = sorted(self._kept[query] + found)[: self._size]
            self._kept[query] = kept
            if len(kept) == self._size:
                self._floors[query] = -kept[-1][0]

    def best(self) -> list[list[tuple[str, float]]]:
        """Per query (example_id, score), largest first, ties by id."""
        return [[(example_id, -negated) for negated, example_id in kept] for kept in self._kept]
