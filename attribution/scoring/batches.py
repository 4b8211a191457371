"""Batches of training rows with their scores (METHODS: equation (1)), of one index."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from gradtrail.attribution.features.rows import GradientBatch
from gradtrail.attribution.methods.prepared import PreparedQueries
from gradtrail.attribution.methods.registry import inverse_norms
from gradtrail.attribution.numerics.products import faster_products
from gradtrail.errors import DataError, StoreError

ScoredBatch = tuple[GradientBatch, NDArray[np.floating]]


@dataclass(frozen=True)
class ScoringPass:
    """Every training row with its scores, as often as asked: batches of rows and (queries, batch) floats.

    Scores are in the type of the queries, float32 or float64; sums over them are taken in float64.
    """

    query_count: int
    batches: Callable[[], Iterator[ScoredBatch]]


def score_batches(queries: PreparedQueries, rows: Iterable[GradientBatch]) -> Iterator[ScoredBatch]:
    """Each batch with its scores (queries, batch): the one place where equation (1) is multiplied out.

    Raises:
        StoreError: when rows have another dimension than the queries.
        DataError: naming an example or output with a score that is not finite.
    """
    transposed = queries.vectors.T.contiguous()
    for batch in rows:
        if batch.columns != queries.vectors.shape[1]:
            raise StoreError(
                f"Index rows have {batch.columns} columns, but the queries {queries.vectors.shape[1]}.",
                "Prepare the queries with the plan of this index.",
            )
        with faster_products():
            by_row = torch.cat([piece.to(transposed.dtype) @ transposed for piece in batch.pieces()])
        if queries.train_scale == "inverse_norm":
            by_row = by_row * inverse_norms(batch.squared_norms)[:, None]
        scores = by_row.T
        # One sum tells whether anything is not finite; only then is it worth a look at each score.
        if not torch.isfinite(scores.sum()) and not torch.isfinite(scores).all():
            query, row = torch.nonzero(~torch.isfinite(scores))[0].tolist()
            name = queries.query_ids[query] if queries.query_ids else f"number {query}"
            raise DataError(
                f"The score of example {batch.example_ids[row]} for output {name} is not finite.",
                "Check the index with `gradtrail verify`; with method influence, raise the damping.",
            )
        yield batch, scores.numpy()
