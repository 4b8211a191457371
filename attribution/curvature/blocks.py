"""Curvature per group in the space of the features, and queries multiplied by its damped inverse.

`BlockCurvature` is F_g = E[φ_g φ_gᵀ]; `DiagonalCurvature` only its diagonal, which says all where the features are in
the eigenbasis of the Kronecker factors (arXiv 2308.03296). F is a mean over examples.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gradtrail.attribution.adapters.base import ModelAdapter, TrainingData
from gradtrail.attribution.curvature.damping import Damping
from gradtrail.attribution.curvature.vectors import (
    CURVATURE_KINDS,
    CurvatureKind,
    CurvaturePieces,
    default_curvature_kind,
    model_vectors,
    observed_vectors,
)
from gradtrail.attribution.features.plan import FeaturePlan
from gradtrail.attribution.features.rows import GradientBatch
from gradtrail.errors import DataError, StoreError, UsageError
from gradtrail.nouns import Example, Weighting

__all__ = ["CURVATURE_KINDS", "CurvatureKind", "default_curvature_kind"]


@dataclass(frozen=True)
class BlockCurvature:
    """One symmetric float64 matrix (d_g, d_g) per group, the mean over `example_count` examples."""

    kind: CurvatureKind
    blocks: tuple[Tensor, ...]
    example_count: int

    @classmethod
    def fit(cls, source: CurvaturePieces) -> BlockCurvature:
        """The mean outer product of each group, streamed.

        Raises:
            DataError: without examples.
        """
        plan = source.plan
        sums = [torch.zeros(group.dimension, group.dimension, dtype=torch.float64) for group in plan.groups]
        count = 0
        for examples, vectors in source.pieces:
            count += examples
            for total, columns in zip(sums, plan.slices, strict=True):
                part = vectors[:, columns].double()
                total.addmm_(part.T, part)
        refuse_empty(count)
        return cls(source.kind, tuple(total / count for total in sums), count)

    def to_tensors(self) -> dict[str, Tensor]:
        """Named tensors for a safetensors file; `from_tensors` reads them back."""
        return {
            **{f"block.{position}": block.contiguous() for position, block in enumerate(self.blocks)},
            **header(self.kind, self.example_count),
        }

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], kind: str | None = None) -> BlockCurvature:
        """Read back `to_tensors`; with `kind`, only that kind is accepted.

        Raises:
            StoreError: when the tensors are others.
        """
        names = [f"block.{position}" for position in range(len(tensors) - 2)]
        stored_kind, count = read_header(tensors, names, kind)
        return cls(stored_kind, tuple(tensors[name] for name in names), count)

    def solve(self, vectors: Tensor, plan: FeaturePlan, damping: Damping) -> Tensor:
        """(F_g + Λ_g)⁻¹ on every group of `vectors` (batch, dimension), in float64.

        Λ_g is `damping` of the mean eigenvalue of F_g. A group in which F_g and Λ_g are zero (no example has a gradient
        there) gives zeros.

        Raises:
            UsageError: when a block is singular without more damping.
            StoreError: when the blocks are not those of `plan`.
        """
        if [block.shape[0] for block in self.blocks] != [group.dimension for group in plan.groups]:
            raise StoreError("The curvature has other groups than the index.", "Compute it again for this index.")
        solved = torch.zeros_like(vectors, dtype=torch.float64)
        for group, columns, block in zip(plan.groups, plan.slices, self.blocks, strict=True):
            added = damping.of(block.trace().item() / group.dimension)
            if added == 0 and not block.any():
                continue
            damped = block + added * torch.eye(group.dimension, dtype=torch.float64)
            factor, failure = torch.linalg.cholesky_ex(damped)
            if failure.item():
                raise singular(group.name, added)
            solved[:, columns] = torch.cholesky_solve(vectors[:, columns].double().T, factor).T
        return solved


@dataclass(frozen=True)
class DiagonalCurvature:
    """λ_j = mean over `example_count` examples of φ_j²: (dimension,) float64."""

    kind: CurvatureKind
    diagonal: Tensor
    example_count: int

    @classmethod
    def fit(cls, source: CurvaturePieces) -> DiagonalCurvature:
        """The mean square of each column, streamed.

        Raises:
            DataError: without examples.
        """
        total = torch.zeros(source.plan.dimension, dtype=torch.float64)
        count = 0
        for examples, vectors in source.pieces:
            count += examples
            total += vectors.double().square().sum(0)
        refuse_empty(count)
        return cls(source.kind, total / count, count)

    def to_tensors(self) -> dict[str, Tensor]:
        """Named tensors for a safetensors file; `from_tensors` reads them back."""
        return {"diagonal": self.diagonal, **header(self.kind, self.example_count)}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], kind: str | None = None) -> DiagonalCurvature:
        """Read back `to_tensors`; with `kind`, only that kind is accepted.

        Raises:
            StoreError: when the tensors are others.
        """
        stored_kind, count = read_header(tensors, ["diagonal"], kind)
        return cls(stored_kind, tensors["diagonal"], count)

    def solve(self, vectors: Tensor, plan: FeaturePlan, damping: Damping) -> Tensor:
        """vectors / (λ + Λ_g), in float64; Λ_g is `damping` of the mean of λ over the group.

        Raises:
            UsageError: when a group has zeros in its diagonal and no damping.
            StoreError: when the diagonal is not that of `plan`.
        """
        if len(self.diagonal) != plan.dimension:
            raise StoreError("The curvature has other groups than the index.", "Compute it again for this index.")
        solved = torch.zeros_like(vectors, dtype=torch.float64)
        for group, columns in zip(plan.groups, plan.slices, strict=True):
            own = self.diagonal[columns]
            added = damping.of(own.mean().item())
            if added == 0 and not own.any():
                continue
            damped = own + added
            if not damped.all():
                raise singular(group.name, added)
            solved[:, columns] = vectors[:, columns].double() / damped
        return solved


def empirical_curvature(
    rows: Iterable[GradientBatch], plan: FeaturePlan, stored_weighting: Weighting | None = None
) -> BlockCurvature:
    """Block curvature from observed targets, streamed over feature rows, as computed or stored under a weighting.

    Raises:
        DataError: when there are no rows.
    """
    return BlockCurvature.fit(observed_vectors(rows, plan, stored_weighting))


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
    """Block curvature `fisher` or `ggn`; arguments and errors as `model_vectors`."""
    return BlockCurvature.fit(
        model_vectors(adapter, model, examples, plan, kind=kind, seed=seed, batch_size=batch_size, device=device)
    )


def header(kind: CurvatureKind, example_count: int) -> dict[str, Tensor]:
    """What every stored curvature holds beside its numbers."""
    return {"example_count": torch.tensor([example_count]), "kind": torch.tensor([CURVATURE_KINDS.index(kind)])}


def read_header(tensors: Mapping[str, Tensor], names: Iterable[str], kind: str | None) -> tuple[CurvatureKind, int]:
    """Kind and number of examples of a stored curvature that must hold `names`; StoreError otherwise."""
    if set(tensors) != {*names, "example_count", "kind"}:
        raise StoreError(
            f"A stored curvature holds {sorted(tensors)} instead of blocks, example_count and kind.",
            "Remove the file; the next audit computes it again.",
        )
    stored_kind = CURVATURE_KINDS[int(tensors["kind"].item())]
    if kind is not None and kind != stored_kind:
        raise StoreError(
            f"A stored curvature is of kind {stored_kind}, not {kind}.", "Remove the file and compute it again."
        )
    return stored_kind, int(tensors["example_count"].item())


def refuse_empty(count: int) -> None:
    """DataError when a curvature would be a mean over nothing."""
    if count == 0:
        raise DataError("A curvature without examples.", "Pass the training examples of the index.")


def singular(name: str, damping: float) -> UsageError:
    """The error of an inverse that does not exist."""
    return UsageError(
        f"The curvature of group {name} is singular with damping {damping:.3g}.",
        "Raise the relative or the absolute damping.",
    )
