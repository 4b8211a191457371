"""What each group contributes to each score: C[q, z, g] = a(z) ⟨[Mφ(q)]_g, φ_g(z)⟩ (METHODS: w), streamed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gradtrail.attribution.features.plan import FeaturePlan
from gradtrail.attribution.features.rows import GradientBatch
from gradtrail.attribution.methods.prepared import PreparedQueries
from gradtrail.attribution.methods.registry import inverse_norms
from gradtrail.errors import DataError, StoreError

_MOST_VALUES = 1 << 22
"""Values held at once: 32 MB in float64."""


@dataclass(frozen=True)
class ContributionBlock:
    """Contributions (queries, batch, groups) float64 of a few examples, with their attributes as in `GradientBatch`."""

    example_ids: Sequence[str]
    attributes: Mapping[str, Sequence[str]]
    values: Tensor


Contributions = Callable[[], Iterator[ContributionBlock]]
"""Streams all examples, under the weighting the queries were prepared with; called once a pass."""


def contributions(
    queries: PreparedQueries, rows: Callable[[], Iterable[GradientBatch]], plan: FeaturePlan
) -> Contributions:
    """Contributions of stored rows, in blocks of a bounded size; to learn weights, prepare the queries uniformly.

    Raises:
        StoreError: on the way, when rows, queries and plan have different dimensions.
    """
    size = max(1, _MOST_VALUES // max(1, len(queries.vectors) * len(plan.groups)))

    def blocks() -> Iterator[ContributionBlock]:
        for batch in rows():
            for start in range(0, len(batch.example_ids), size):
                part = slice(start, start + size)
                yield ContributionBlock(
                    batch.example_ids[part],
                    {name: values[part] for name, values in batch.attributes.items()},
                    _split(queries, batch.vectors[part], batch.squared_norms[part], plan),
                )

    return blocks


def removed_sums(
    rows: Callable[[], Iterable[GradientBatch]],
    removed: Sequence[frozenset[str]],
    plan: FeaturePlan,
    queries: PreparedQueries,
) -> Tensor:
    """Σ over z in S of a(z) · stored row of z, for each left-out set S, in one pass: (sets, dimension) float64.

    With these sums, the effects that any M and any weighting predict cost no further pass: see `group_effects`. Of
    `queries` only a(z) is used, so that every horizon or damping of one method shares them.

    Raises:
        DataError: naming an example that was left out but is not in the index.
    """
    totals = torch.zeros(len(removed), plan.dimension, dtype=torch.float64)
    seen: set[str] = set()
    for batch in rows():
        members = torch.tensor(
            [[example_id in without for example_id in batch.example_ids] for without in removed], dtype=torch.float64
        )
        if queries.train_scale == "inverse_norm":
            members = members * inverse_norms(batch.squared_norms)
        totals += members @ batch.vectors.double()
        seen.update(batch.example_ids)
    missing = sorted({example_id for without in removed for example_id in without} - seen)
    if missing:
        raise DataError(
            f"{len(missing)} left-out examples are not in the index, for example {missing[0]}.",
            "Leave out examples that the index holds.",
        )
    return totals


def group_effects(queries: PreparedQueries, sums: Tensor, plan: FeaturePlan) -> NDArray[np.float64]:
    """Effects that each group predicts, Σ over z in S of C[q, z, g]: (sets, queries, groups).

    Their sum over groups is what `predicted_effects` gives for the same queries; of several indexes that `tracin_cp`
    adds up, add the effects.

    Raises:
        StoreError: when the sums are of another index than the queries.
    """
    _refuse_misfit(queries, sums, plan)
    parts = [sums[:, columns] @ queries.vectors[:, columns].double().T for columns in plan.slices]
    found: NDArray[np.float64] = torch.stack(parts, dim=2).numpy()
    return found


def _split(queries: PreparedQueries, vectors: Tensor, squared_norms: Tensor, plan: FeaturePlan) -> Tensor:
    _refuse_misfit(queries, vectors, plan)
    working = vectors.to(queries.vectors.dtype)
    parts = [queries.vectors[:, columns] @ working[:, columns].T for columns in plan.slices]
    block = torch.stack(parts, dim=2).double()
    if queries.train_scale == "inverse_norm":
        block = block * inverse_norms(squared_norms)[None, :, None]
    return block


def _refuse_misfit(queries: PreparedQueries, rows: Tensor, plan: FeaturePlan) -> None:
    if not rows.shape[1] == queries.vectors.shape[1] == plan.dimension:
        raise StoreError(
            f"Index rows have {rows.shape[1]} columns, the queries {queries.vectors.shape[1]} and the plan "
            f"{plan.dimension}.",
            "Prepare the queries with the plan of this index.",
        )
