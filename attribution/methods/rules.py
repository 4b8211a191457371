"""The attribution methods: what each does to a query before the inner product with training rows (METHODS: M)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from gradtrail.attribution.curvature.blocks import refuse_empty, singular
from gradtrail.attribution.curvature.spectrum import Spectrum
from gradtrail.attribution.features.margins import LEAST_MARGIN, one_minus_probability
from gradtrail.attribution.features.plan import FeaturePlan
from gradtrail.attribution.features.rows import GradientBatch
from gradtrail.attribution.features.weights import unweighted_vectors, weighted_queries
from gradtrail.attribution.methods.needs import (
    CURVATURE,
    DIAGONAL,
    KERNEL,
    LEARNING_RATE,
    NEEDS,
    SEGMENT,
    SOLUTIONS,
    SPECTRUM,
    TRAINING_ROWS,
)
from gradtrail.attribution.methods.prepared import PreparedQueries
from gradtrail.attribution.methods.registry import (
    METHODS,
    Method,
    Preparation,
    attribution_method,
    find_method,
    inverse_norms,
)
from gradtrail.attribution.methods.spec import MethodSpec
from gradtrail.errors import StoreError, UsageError
from gradtrail.nouns import Weighting

__all__ = ["METHODS", "Method", "MethodSpec", "PreparedQueries", "find_method", "prepare_queries"]


@attribution_method(
    source="arXiv 2102.05262",
    description="Inner product of the two gradients: one small step on the example, seen at the output.",
    cost="one pass over the index",
)
def grad_dot(preparation: Preparation) -> Tensor:
    """M = I."""
    return preparation.vectors


@attribution_method(
    source="arXiv 2102.05262",
    description="Cosine of the two gradients: examples with large gradients do not dominate.",
    cost="one pass over the index",
    train_scale="inverse_norm",
)
def grad_cos(preparation: Preparation) -> Tensor:
    """M = I, both sides divided by their norm over all groups."""
    return preparation.vectors * inverse_norms(preparation.squared_norms).unsqueeze(1)


@attribution_method(
    source="arXiv 2002.08484",
    description="Inner products at every checkpoint, weighted by its learning rate: what training itself did.",
    cost="an index and a pass per checkpoint",
    needs=(LEARNING_RATE,),
    combination="sum",
)
def tracin_cp(preparation: Preparation) -> Tensor:
    """M = η_c I at checkpoint c; the scores of all checkpoints add up."""
    rate = preparation.get(LEARNING_RATE)
    if not 0 < rate < float("inf"):
        raise UsageError(f"A learning rate of {rate}.", "Register the checkpoint with a positive learning rate.")
    return preparation.vectors * rate


@attribution_method(
    source="arXiv 2405.13954",
    description="Influence function with block curvature: the effect of leaving the example out, to first order.",
    cost="a curvature per index, then one pass over the index",
    needs=(CURVATURE,),
    combination="sum",
)
def influence(preparation: Preparation) -> Tensor:
    """M = (F_g + Λ_g)⁻¹ per group."""
    curvature = preparation.get(CURVATURE)
    return curvature.solve(preparation.vectors, preparation.plan, preparation.damping)


@attribution_method(
    source="arXiv 2308.03296, 2405.13954",
    description="Influence function with the curvature of all groups together, interactions between layers included.",
    cost="one eigendecomposition per index, which serves every damping, then one pass over the index",
    needs=(SPECTRUM,),
    combination="sum",
)
def influence_global(preparation: Preparation) -> Tensor:
    """M = (F + Λ)⁻¹ over all groups together."""
    spectrum = preparation.get(SPECTRUM)
    return spectrum.solve(preparation.vectors, preparation.damping)


@attribution_method(
    source="arXiv 2405.12186",
    description="The effect after a chosen amount of further training: from grad_dot (short) to influence (long).",
    cost="one eigendecomposition per index, which serves every horizon, then one pass over the index",
    needs=(SPECTRUM,),
    combination="sum",
)
def horizon(preparation: Preparation) -> Tensor:
    """M = F⁻¹ (I − exp(−τF)); without a τ, it is 1/Λ, since damping is the horizon."""
    spectrum = preparation.get(SPECTRUM)
    chosen = preparation.spec.horizon
    if chosen is None:
        damping = preparation.damping.of(spectrum.mean_eigenvalue)
        if damping == 0:
            raise UsageError("Method horizon has neither a horizon nor a damping.", "Choose a positive horizon.")
        chosen = 1 / damping
    return spectrum.gradient_descent(preparation.vectors, chosen)


def _carried(preparation: Preparation) -> Tensor:
    """exp(−τF): what is left of a query for the part of training before this one."""
    spectrum, segment = _unrolled_needs(preparation)
    return spectrum.decay(preparation.vectors, segment)


@attribution_method(
    source="arXiv 2405.12186",
    description="Training unrolled over its checkpoints: what each part did, seen at the end through all later parts.",
    cost="an index and an eigendecomposition per checkpoint, then one pass over all of them together",
    needs=(SPECTRUM, SEGMENT),
    combination="sum",
    carry=_carried,
)
def unrolled(preparation: Preparation) -> Tensor:
    """M = f_τl(F_l) exp(−τ_{l+1} F_{l+1}) … exp(−τ_L F_L) at the checkpoint that ends segment l, τ_l long."""
    spectrum, segment = _unrolled_needs(preparation)
    return spectrum.gradient_descent(preparation.vectors, segment)


def _unrolled_needs(preparation: Preparation) -> tuple[Spectrum, float]:
    if preparation.plan.projection_kind == "eigen":
        raise UsageError(
            "Method unrolled carries queries from checkpoint to checkpoint, but each eigenbasis is of one checkpoint.",
            "Index every checkpoint with random projection, or choose influence.",
        )
    spectrum = preparation.get(SPECTRUM)
    return spectrum, preparation.get(SEGMENT)


@attribution_method(
    source="arXiv 2308.03296",
    description="Influence function in the eigenbasis of the Kronecker factors, where the curvature is near diagonal.",
    cost="an index with eigen projection and its diagonal, then one pass over the index",
    needs=(DIAGONAL,),
    combination="sum",
)
def ekfac(preparation: Preparation) -> Tensor:
    """M = 1 / (λ_ij + Λ_g), λ_ij the mean of (φ_n)_ij²."""
    if preparation.plan.projection_kind != "eigen":
        raise UsageError(
            "Method ekfac needs features in the eigenbasis, but the index has another projection.",
            "Index with eigen projection (gradtrail index --projection eigen), or choose influence.",
        )
    diagonal = preparation.get(DIAGONAL)
    return diagonal.solve(preparation.vectors, preparation.plan, preparation.damping)


@attribution_method(
    source="arXiv 2310.00902",
    description="Influence function with the mean of inverses for the inverse of the mean: no matrix is inverted.",
    cost="three passes over the index",
    needs=(TRAINING_ROWS,),
)
def datainf(preparation: Preparation) -> Tensor:
    """M_g = mean over i of (Λ_g I + φ_i φ_iᵀ)⁻¹ = (1/Λ_g) · mean over i of (I − φ_i φ_iᵀ / (Λ_g + ‖φ_i‖²))."""
    rows = preparation.get(TRAINING_ROWS)
    plan, vectors = preparation.plan, preparation.vectors
    traces = torch.zeros(len(plan.groups), dtype=torch.float64)
    count = 0
    for part in rows():
        traces += part.squared_norms.sum(0)
        count += len(part.example_ids)
    refuse_empty(count)
    dimensions = torch.tensor([group.dimension for group in plan.groups])
    dampings = [preparation.damping.of(mean) for mean in (traces / count / dimensions).tolist()]
    total = torch.zeros_like(vectors)
    for part in rows():
        training = unweighted_vectors(part.vectors, plan, preparation.stored_weighting).double()
        for damping, columns in zip(dampings, plan.slices, strict=True):
            if damping > 0:
                own = training[:, columns]
                total[:, columns] += (vectors[:, columns] @ own.T / (damping + own.square().sum(1))) @ own
    solved = torch.zeros_like(vectors)
    for group, damping, columns, trace in zip(plan.groups, dampings, plan.slices, traces.tolist(), strict=True):
        if damping > 0:
            solved[:, columns] = (vectors[:, columns] - total[:, columns] / count) / damping
        elif trace > 0:
            raise singular(group.name, damping)
    return solved


@attribution_method(
    source="arXiv 2303.14186",
    description="Linearised classifier of margins: how retraining without the example would move the output's margin.",
    cost="one eigendecomposition per index, then one pass over the index; with several checkpoints, one each",
    needs=(KERNEL,),
    combination="mean_margin",
)
def trak(preparation: Preparation) -> Tensor:
    """M = (Σ φφᵀ/(1−p)² + N Λ)⁻¹ on φ(q)/(1−p_q); on the training side 1−p cancels."""
    kernel = preparation.get(KERNEL)
    margins = one_minus_probability(preparation.losses).clamp_min(LEAST_MARGIN)
    return kernel.solve(preparation.vectors / margins.unsqueeze(1), preparation.damping) / kernel.example_count


@attribution_method(
    source="arXiv 1703.04730; operators of curvlinops",
    description="Influence function with the curvature of all parameters, unprojected, by conjugate gradients.",
    cost="tens of passes over the training data for every 16 outputs, then one over the index",
    needs=(SOLUTIONS,),
)
def cg(preparation: Preparation) -> Tensor:
    """(G + Λ)⁻¹ on the full gradient by conjugate gradients, then projected."""
    return preparation.get(SOLUTIONS).vectors


@attribution_method(
    source="arXiv 1703.04730; operators of curvlinops",
    description="Influence function with the curvature of all parameters, unprojected, by a truncated Neumann series.",
    cost="hundreds of passes over the training data for every 16 outputs, then one over the index",
    needs=(SOLUTIONS,),
)
def lissa(preparation: Preparation) -> Tensor:
    """(G + Λ)⁻¹ on the full gradient by a truncated Neumann series, then projected."""
    return preparation.get(SOLUTIONS).vectors


def prepare_queries(
    spec: MethodSpec,
    rows: GradientBatch,
    plan: FeaturePlan,
    weighting: Weighting | None = None,
    *,
    stored_weighting: Weighting | None = None,
    **fitted: Any,
) -> PreparedQueries:
    """The query side of equation (1) for unweighted query features, against rows stored under `stored_weighting`.

    `weighting` are the group weights that the spec names. `fitted` gives what the method needs by the names of its
    needs, such as `curvature=` or `spectrum=`; what other methods need is ignored.

    Raises:
        UsageError: for an unknown method, a weighting that does not fit, a missing need or a bad damping.
        StoreError: when the queries, or what the method needs, were measured with another plan.
        TypeError: for a need that no method has.
    """
    method = find_method(spec.method)
    known = {*NEEDS, *(need.name for need in method.needs)}
    if unknown := sorted(set(fitted) - known):
        raise TypeError(
            f"prepare_queries() got {', '.join(unknown)}, which no method needs: {', '.join(sorted(known))}"
        )
    if rows.vectors.shape[1] != plan.dimension:
        raise StoreError(
            f"Queries have {rows.vectors.shape[1]} columns, but the index has {plan.dimension}.",
            "Compute the query features with the plan of the index.",
        )
    preparation = Preparation(
        spec=replace(spec, method=method.name),
        vectors=rows.vectors.double(),
        squared_norms=rows.squared_norms,
        losses=rows.losses,
        plan=plan,
        fitted=fitted,
        stored_weighting=stored_weighting,
    )
    preconditioned = method.precondition(preparation)
    if preconditioned.shape != rows.vectors.shape:
        raise StoreError(
            f"Method {method.name} gave vectors of shape {tuple(preconditioned.shape)} for queries of shape "
            f"{tuple(rows.vectors.shape)}.",
            "Compute what the method needs for these very queries and this plan.",
        )
    working_type = torch.promote_types(torch.float32, plan.dtype)
    return PreparedQueries(
        vectors=weighted_queries(preconditioned, plan, weighting or Weighting(), stored_weighting).to(working_type),
        train_scale=method.train_scale,
        query_ids=tuple(rows.example_ids),
        zero_norm_queries=int((rows.squared_norms.sum(1) == 0).sum()),
        carried=method.carry(preparation) if method.carry else None,
    )
