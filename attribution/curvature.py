"""Block curvature F_g = E[φ_g φ_gᵀ] in the space of the features, and queries multiplied by its damped inverse.

Three kinds (METHODS: curvature kinds): `empirical` from observed targets, `fisher` from targets sampled from the model,
`ggn` exact through a factor of the loss's Hessian in the outputs. F is a mean over examples: an objective with a summed
loss and penalty ½λ‖θ‖² has an absolute damping of λ / N.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Literal, cast, get_args

import torch
from torch import Tensor, nn

from gradtrail.attribution.adapters import ModelAdapter, TrainingData, iterate_examples
from gradtrail.attribution.features import FeaturePlan, FeatureRows
from gradtrail.attribution.recording import Instrument, Recording, build_instrument, recording
from gradtrail.attribution.weights import unweighted_vectors
from gradtrail.errors import DataError, ModelError, StoreError, UsageError
from gradtrail.nouns import Example, Weighting

CurvatureKind = Literal["empirical", "fisher", "ggn"]
CURVATURE_KINDS: tuple[CurvatureKind, ...] = get_args(CurvatureKind)


@dataclass(frozen=True)
class BlockCurvature:
    """One symmetric float64 matrix (d_g, d_g) per group, the mean over `example_count` examples."""

    kind: CurvatureKind
    blocks: tuple[Tensor, ...]
    example_count: int

    def to_tensors(self) -> dict[str, Tensor]:
        """Named tensors for a safetensors file; `from_tensors` reads them back."""
        return {
            **{f"block.{position}": block.contiguous() for position, block in enumerate(self.blocks)},
            "example_count": torch.tensor([self.example_count]),
            "kind": torch.tensor([CURVATURE_KINDS.index(self.kind)]),
        }

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], kind: str | None = None) -> BlockCurvature:
        """Read back `to_tensors`; with `kind`, only that kind is accepted.

        Raises:
            StoreError: when the tensors are others.
        """
        names = {f"block.{position}" for position in range(len(tensors) - 2)}
        if set(tensors) != {*names, "example_count", "kind"}:
            raise StoreError(
                f"A stored curvature holds {sorted(tensors)} instead of blocks, example_count and kind.",
                "Remove the file and index again.",
            )
        stored_kind = CURVATURE_KINDS[int(tensors["kind"].item())]
        if kind is not None and kind != stored_kind:
            raise StoreError(
                f"A stored curvature is of kind {stored_kind}, not {kind}.", "Remove the file and compute it again."
            )
        return cls(
            kind=stored_kind,
            blocks=tuple(tensors[f"block.{position}"] for position in range(len(names))),
            example_count=int(tensors["example_count"].item()),
        )

    def solve(self, vectors: Tensor, plan: FeaturePlan, relative_damping: float, absolute_damping: float) -> Tensor:
        """(F_g + Λ_g)⁻¹ on every group of `vectors` (batch, dimension), in float64.

        Λ_g = relative_damping × mean eigenvalue of F_g + absolute_damping. A group in which F_g and Λ_g are zero (no
        example has a gradient there) gives zeros.

        Raises:
            UsageError: for negative damping, or when a block is singular without more of it.
            StoreError: when the blocks are not those of `plan`.
        """
        if relative_damping < 0 or absolute_damping < 0:
            raise UsageError(
                f"Damping relative={relative_damping}, absolute={absolute_damping}.", "Choose dampings of at least 0."
            )
        if [block.shape[0] for block in self.blocks] != [group.dimension for group in plan.groups]:
            raise StoreError("The curvature has other groups than the index.", "Compute it again for this index.")
        solved = torch.zeros_like(vectors, dtype=torch.float64)
        for group, columns, block in zip(plan.groups, plan.slices, self.blocks, strict=True):
            damping = relative_damping * block.trace().item() / group.dimension + absolute_damping
            if damping == 0 and not block.any():
                continue
            damped = block + damping * torch.eye(group.dimension, dtype=torch.float64)
            factor, failure = torch.linalg.cholesky_ex(damped)
            if failure.item():
                raise UsageError(
                    f"The curvature of group {group.name} is singular with damping {damping:.3g}.",
                    "Raise the relative or the absolute damping.",
                )
            solved[:, columns] = torch.cholesky_solve(vectors[:, columns].double().T, factor).T
        return solved


def default_curvature_kind(adapter: ModelAdapter) -> Literal["fisher", "empirical"]:
    """`fisher` where the adapter can sample targets, else `empirical`."""
    return "empirical" if type(adapter).sample_targets is ModelAdapter.sample_targets else "fisher"


def empirical_curvature(
    rows: Iterable[FeatureRows], plan: FeaturePlan, stored_weighting: Weighting | None = None
) -> BlockCurvature:
    """Curvature from observed targets, streamed over feature rows, stored under `stored_weighting` or just computed.

    Raises:
        DataError: when there are no rows.
    """
    return _mean_blocks(
        "empirical",
        ((len(part.vectors), unweighted_vectors(part.vectors, plan, stored_weighting)) for part in rows),
        plan,
    )


def model_curvature(
    adapter: ModelAdapter,
    model: nn.Module,
    examples: Iterable[Example] | TrainingData,
    plan: FeaturePlan,
    *,
    kind: str,
    seed: int = 0,
    batch_size: int = 64,
    device: str | torch.device = "cpu",
) -> BlockCurvature:
    """Curvature `fisher` (one sampled target per example, drawn in order from `seed`) or `ggn` (exact).

    Raises:
        UsageError: for another kind.
        ModelError: when the adapter does not support the kind.
        DataError: without examples, or when a gradient is not finite, naming the example.
    """
    if kind not in {"fisher", "ggn"}:
        raise UsageError(
            f"Curvature {kind!r} cannot be computed from the model.", "Choose fisher or ggn, or empirical_curvature."
        )
    instrument = build_instrument(adapter, model, plan, device)
    pieces = _model_vectors(instrument, iterate_examples(examples), kind, seed, batch_size)
    return _mean_blocks(cast(CurvatureKind, kind), pieces, plan)


def _model_vectors(
    instrument: Instrument, remaining: Iterator[Example], kind: str, seed: int, batch_size: int
) -> Iterator[tuple[int, Tensor]]:
    """Vectors whose outer products sum to the curvature, with how many examples each piece completes."""
    adapter = instrument.adapter
    generator = torch.Generator().manual_seed(seed)
    while batch := list(islice(remaining, batch_size)):
        with recording(instrument, batch) as record:
            _refuse_non_finite("model's output", record.outputs.detach(), batch)
            if kind == "fisher":
                sampled = adapter.sample_targets(record.outputs, record.batch, generator)
                pieces = iter([record.vectors(adapter.losses(record.outputs, sampled))])
            else:
                pieces = _factor_vectors(adapter, record)
            for position, vectors in enumerate(pieces):
                _refuse_non_finite("curvature's gradient", vectors, batch)
                yield (len(batch) if position == 0 else 0), vectors.cpu()


def _factor_vectors(adapter: ModelAdapter, record: Recording) -> Iterator[Tensor]:
    """J_nᵀ f_k for each factor k: one backward pass each."""
    factors = adapter.curvature_factors(record.outputs, record.batch)
    if factors is None:
        raise ModelError(
            f"{type(adapter).__name__} has no curvature_factors, which curvature `ggn` needs.",
            "Write curvature_factors in the adapter, or choose fisher or empirical.",
        )
    for position, factor in enumerate(factors.detach()):
        products = (factor * record.outputs).flatten(1).sum(1)
        yield record.vectors(products, keep_graph=position + 1 < len(factors))


def _mean_blocks(kind: CurvatureKind, pieces: Iterable[tuple[int, Tensor]], plan: FeaturePlan) -> BlockCurvature:
    sums = [torch.zeros(group.dimension, group.dimension, dtype=torch.float64) for group in plan.groups]
    count = 0
    for examples, vectors in pieces:
        count += examples
        for total, columns in zip(sums, plan.slices, strict=True):
            part = vectors[:, columns].double()
            total.addmm_(part.T, part)
    if count == 0:
        raise DataError("A curvature without examples.", "Pass the training examples of the index.")
    return BlockCurvature(kind, tuple(total / count for total in sums), count)


def _refuse_non_finite(what: str, values: Tensor, examples: Sequence[Example]) -> None:
    sound = torch.isfinite(values).reshape(len(examples), -1).all(1).tolist()
    named = [example.example_id for example, finite in zip(examples, sound, strict=True) if not finite]
    if named:
        raise DataError(
            f"The {what} is not finite for {', '.join(named[:10])}.",
            "Leave out the examples that the index quarantined.",
        )
