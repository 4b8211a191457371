"""Further training unrolled in segments: the horizon of a model that moves on the way (METHODS: the horizon).

Gradients and curvature at the final weights foretell a short further training; on a longer one the weights leave the
place where they were measured. Trained further on all data, the model is measured again where the training ends, for
the queries, and once in each segment l of τ_l units of descent, for the examples and the curvature F_l. To first order
the effect of example z on query q is then (arXiv 2405.12186)

    Σ_l ⟨ f_τl(F_l) exp(−τ_{l+1} F_{l+1}) … exp(−τ_L F_L) φ_end(q), φ_l(z) ⟩,    f_τ(F) = F⁻¹ (I − exp(−τF))

One segment at the final weights, with its queries measured there too, is method `horizon`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gradtrail.attribution.feature_rows import FeatureRows
from gradtrail.attribution.features import FeaturePlan
from gradtrail.attribution.prepared import PreparedQueries
from gradtrail.attribution.spectrum import Spectrum
from gradtrail.attribution.weights import weighted_queries
from gradtrail.errors import StoreError, UsageError
from gradtrail.nouns import Weighting


@dataclass(frozen=True)
class Segment:
    """Curvature in a part of further training, and τ of that part: learning rate × steps."""

    spectrum: Spectrum
    horizon: float


def unrolled_queries(
    rows: FeatureRows,
    segments: Sequence[Segment],
    plan: FeaturePlan,
    weighting: Weighting | None = None,
    *,
    stored_weighting: Weighting | None = None,
) -> list[PreparedQueries]:
    """Queries for each segment in order, to meet the training rows measured in it; the scores of all segments add up.

    `rows` are unweighted queries, measured where the last segment ends.

    Raises:
        UsageError: without segments, or for a horizon that is not positive and finite.
        StoreError: when queries or a curvature were measured with another plan.
    """
    if not segments:
        raise UsageError("Further training was unrolled into no segment.", "Give at least one.")
    if rows.vectors.shape[1] != plan.dimension:
        raise StoreError(
            f"Queries have {rows.vectors.shape[1]} columns, but the plan {plan.dimension}.",
            "Measure all segments and queries with one plan.",
        )
    working = torch.promote_types(torch.float32, plan.dtype)
    remaining, found = rows.vectors.double(), []
    for segment in reversed(segments):
        solved = segment.spectrum.gradient_descent(remaining, segment.horizon)
        remaining = _decayed(segment, remaining)
        vectors = weighted_queries(solved, plan, weighting or Weighting(), stored_weighting).to(working)
        zeros = int((rows.squared_norms.sum(1) == 0).sum())
        found.append(PreparedQueries(vectors, "none", tuple(rows.example_ids), zeros))
    return found[::-1]


def _decayed(segment: Segment, vectors: Tensor) -> Tensor:
    """exp(−τF) on vectors (queries, dimension): what is left of a change after the segment."""
    lost = -torch.expm1(-segment.horizon * segment.spectrum.eigenvalues)
    basis = segment.spectrum.eigenvectors
    return vectors - (vectors @ basis * lost) @ basis.T
