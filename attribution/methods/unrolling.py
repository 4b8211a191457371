"""Training unrolled in segments, past or further: a model that moves on the way (METHODS: the horizon).

Gradients and curvature at one place predict a short training; on a longer one the weights leave the place where they
were measured. So the model is measured where the training ends, for the queries, and once in each segment l of τ_l
units of descent, for the examples and the curvature F_l. To first order the effect of example z on query q is then
(arXiv 2405.12186)

    Σ_l ⟨ f_τl(F_l) exp(−τ_{l+1} F_{l+1}) … exp(−τ_L F_L) φ_end(q), φ_l(z) ⟩,    f_τ(F) = F⁻¹ (I − exp(−τF))

Over the stored checkpoints of a training this is method `unrolled` of audits. Over a further training it predicts what
that will do. One segment, with its queries measured where its examples are, is method `horizon`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from gradtrail.attribution.curvature.spectrum import Spectrum
from gradtrail.attribution.features.plan import FeaturePlan
from gradtrail.attribution.features.rows import GradientBatch
from gradtrail.attribution.methods.prepared import PreparedQueries
from gradtrail.attribution.methods.rules import prepare_queries
from gradtrail.attribution.methods.spec import MethodSpec
from gradtrail.errors import UsageError
from gradtrail.nouns import Weighting


@dataclass(frozen=True)
class Segment:
    """Curvature in a part of training, and τ of that part: learning rate × steps."""

    spectrum: Spectrum
    horizon: float


def unrolled_queries(
    rows: GradientBatch,
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
        raise UsageError("Training was unrolled into no segment.", "Give at least one.")
    found: list[PreparedQueries] = []
    for segment in reversed(segments):
        prepared = prepare_queries(
            MethodSpec("unrolled"),
            rows,
            plan,
            weighting,
            stored_weighting=stored_weighting,
            spectrum=segment.spectrum,
            segment=segment.horizon,
        )
        rows = carried_rows(rows, prepared)
        found.append(prepared)
    return found[::-1]


def carried_rows(rows: GradientBatch, prepared: PreparedQueries) -> GradientBatch:
    """The queries for the checkpoint before: what is left of them, or, where each checkpoint has its own, `rows`."""
    return rows if prepared.carried is None else replace(rows, vectors=prepared.carried)
