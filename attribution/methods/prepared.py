"""Queries on their way to the inner product with training rows."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from gradtrail.attribution.methods.registry import TrainScale


@dataclass(frozen=True)
class PreparedQueries:
    """Queries ready for plain inner products with stored rows: (queries, dimension), in the order of `query_ids`.

    `zero_norm_queries` counts those whose features are all zero; all their scores are zero. `carried` are unweighted
    queries for the checkpoint before, float64; None where each checkpoint measures its own.
    """

    vectors: Tensor
    train_scale: TrainScale
    query_ids: tuple[str, ...] = ()
    zero_norm_queries: int = 0
    carried: Tensor | None = None
