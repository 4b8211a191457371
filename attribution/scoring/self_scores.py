"""Self-influence: the score of each training example on itself, under any method that the stored table serves.

Examples whose label is wrong must explain themselves and stand at the top: a detector of mislabelled data
(arXiv 2002.08484, section 4.1).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from gradtrail.attribution.features.plan import FeaturePlan
from gradtrail.attribution.features.rows import GradientBatch
from gradtrail.attribution.features.weights import unweighted_vectors
from gradtrail.attribution.methods.needs import SOLUTIONS
from gradtrail.attribution.methods.registry import Method, find_method, inverse_norms
from gradtrail.attribution.methods.rules import prepare_queries
from gradtrail.attribution.methods.spec import MethodSpec
from gradtrail.errors import DataError, UsageError
from gradtrail.nouns import Weighting

ROWS_TOGETHER = 4096
"""Rows prepared at once: a method that streams the index for its queries (datainf) then does so once for so many."""

SelfInfluence = Iterator[tuple[Sequence[str], Tensor]]


def require_self_influence(method: Method) -> None:
    """Refuse a method that gives no self-influence, before anything is fitted for it.

    Raises:
        UsageError: it solves every query with the model itself (cg, lissa) or carries queries between checkpoints
            (unrolled).
    """
    if SOLUTIONS in method.needs:
        raise UsageError(
            f"Method {method.name} solves each query with the model, which is too much for every training example.",
            "Choose influence or ekfac.",
        )
    if method.carry:
        raise UsageError(
            f"Method {method.name} carries queries from the last checkpoint back to the first, so that no example "
            "meets itself as it was measured.",
            "Choose tracin_cp or influence.",
        )


def self_influence(
    spec: MethodSpec,
    rows: Callable[[], Iterable[GradientBatch]],
    plan: FeaturePlan,
    weighting: Weighting | None = None,
    *,
    stored_weighting: Weighting | None = None,
    **fitted: Any,
) -> SelfInfluence:
    """Example ids and their scores on themselves, (batch,) float64, in the order of the index.

    `weighting`, `stored_weighting` and `fitted` are those of `prepare_queries`.

    Raises:
        UsageError: as `require_self_influence` and `prepare_queries`.
        DataError: when a value is not finite, naming the example.
    """
    method = find_method(spec.method)
    require_self_influence(method)
    for stored in _gathered(rows()):
        unweighted = GradientBatch(
            example_ids=stored.example_ids,
            vectors=unweighted_vectors(stored.vectors, plan, stored_weighting),
            losses=stored.losses,
            squared_norms=stored.squared_norms,
        )
        prepared = prepare_queries(spec, unweighted, plan, weighting, stored_weighting=stored_weighting, **fitted)
        values = (prepared.vectors.double() * stored.vectors.double()).sum(1)
        if method.train_scale == "inverse_norm":
            values = values * inverse_norms(stored.squared_norms)
        if not torch.isfinite(values).all():
            row = int(torch.nonzero(~torch.isfinite(values))[0])
            raise DataError(
                f"The self-influence of example {stored.example_ids[row]} is not finite.", "Raise the damping."
            )
        yield stored.example_ids, values


def summed_self_influence(parts: Sequence[SelfInfluence]) -> Mapping[str, float]:
    """Self-influence over several indexes (tracin_cp), of the examples that all of them hold, by example id."""
    totals: dict[str, tuple[int, float]] = {}
    for example_ids, values in chain.from_iterable(parts):
        for example_id, value in zip(example_ids, values.tolist(), strict=True):
            seen, before = totals.get(example_id, (0, 0.0))
            totals[example_id] = (seen + 1, before + value)
    return {example_id: value for example_id, (seen, value) in totals.items() if seen == len(parts)}


def _gathered(rows: Iterable[GradientBatch]) -> Iterator[GradientBatch]:
    """Batches joined until they hold `ROWS_TOGETHER` rows."""
    held: list[GradientBatch] = []
    for part in rows:
        held.append(part)
        if sum(len(each.example_ids) for each in held) >= ROWS_TOGETHER:
            yield GradientBatch.joined(held)
            held = []
    if held:
        yield GradientBatch.joined(held)
