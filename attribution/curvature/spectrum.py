"""Curvature over all groups together, as one eigendecomposition that serves every damping and every horizon.

F = E[φ φᵀ] is decomposed as it is (dimension × dimension), or through the inner products of the vectors (count × count)
where those are fewer: both give the same eigenvalues and, on the span of the vectors, the same eigenvectors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from gradtrail.attribution.curvature.blocks import header, read_header, refuse_empty, singular
from gradtrail.attribution.curvature.damping import Damping
from gradtrail.attribution.curvature.vectors import CurvatureKind, CurvaturePieces
from gradtrail.attribution.features.margins import LEAST_MARGIN, one_minus_probability
from gradtrail.attribution.features.plan import FeaturePlan
from gradtrail.attribution.features.rows import GradientBatch
from gradtrail.attribution.features.weights import unweighted_vectors
from gradtrail.errors import DataError, StoreError, UsageError
from gradtrail.nouns import Weighting

LARGEST_SIDE = 8192
"""Largest matrix that is decomposed: 512 MB in float64, minutes on a few cores."""


@dataclass(frozen=True)
class Spectrum:
    """Eigenvectors (dimension, rank) and positive eigenvalues (rank,), ascending, float64, of a mean over examples."""

    kind: CurvatureKind
    eigenvalues: Tensor
    eigenvectors: Tensor
    example_count: int

    @classmethod
    def fit(cls, source: CurvaturePieces) -> Spectrum:
        """Decompose the mean outer product of the vectors, streamed.

        Raises:
            DataError: without examples.
            UsageError: when both the dimension and the number of vectors are above `LARGEST_SIDE`.
        """
        moment = _SecondMoment(source.plan.dimension)
        count = 0
        for examples, vectors in source.pieces:
            count += examples
            moment.add(vectors.double())
        refuse_empty(count)
        eigenvalues, eigenvectors = moment.decompose(count)
        return cls(source.kind, eigenvalues, eigenvectors, count)

    def to_tensors(self) -> dict[str, Tensor]:
        """Named tensors for a safetensors file; `from_tensors` reads them back."""
        own = {"eigenvalues": self.eigenvalues, "eigenvectors": self.eigenvectors.contiguous()}
        return own | header(self.kind, self.example_count)

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], kind: str | None = None) -> Spectrum:
        """Read back `to_tensors`; with `kind`, only that kind is accepted.

        Raises:
            StoreError: when the tensors are others.
        """
        stored_kind, count = read_header(tensors, ["eigenvalues", "eigenvectors"], kind)
        return cls(stored_kind, tensors["eigenvalues"], tensors["eigenvectors"], count)

    @property
    def mean_eigenvalue(self) -> float:
        """The trace over the dimension; directions that no vector has count as zeros."""
        return self.eigenvalues.sum().item() / len(self.eigenvectors)

    def solve(self, vectors: Tensor, damping: Damping) -> Tensor:
        """(F + Λ)⁻¹ on `vectors` (batch, dimension), in float64.

        Raises:
            UsageError: when F is singular without damping.
        """
        added = damping.of(self.mean_eigenvalue)
        if added == 0 and len(self.eigenvalues) < len(self.eigenvectors):
            raise singular("all groups together", added)
        return self._apply(vectors, 1 / (self.eigenvalues + added), 1 / added if added else 0.0)

    def gradient_descent(self, vectors: Tensor, horizon: float) -> Tensor:
        """f_τ(F) = F⁻¹ (I − exp(−τF)) on `vectors`, in float64: τ (learning rate × steps) of descent on a quadratic.

        Source: arXiv 2405.12186. In directions that no vector has, it is τ times the identity.

        Raises:
            UsageError: for a horizon that is not positive and finite.
        """
        if not 0 < horizon < float("inf"):
            raise UsageError(
                f"A horizon of {horizon}.", "Choose a positive number: learning rate × steps of further training."
            )
        return self._apply(vectors, -torch.expm1(-horizon * self.eigenvalues) / self.eigenvalues, horizon)

    def decay(self, vectors: Tensor, horizon: float) -> Tensor:
        """exp(−τF) on `vectors`, in float64: what is left of a change after τ of descent on a quadratic."""
        return self._apply(vectors, torch.exp(-horizon * self.eigenvalues), 1.0)

    def _apply(self, vectors: Tensor, function: Tensor, elsewhere: float) -> Tensor:
        if vectors.shape[1] != len(self.eigenvectors):
            raise StoreError("The curvature has other groups than the index.", "Compute it again for this index.")
        inputs = vectors.double()
        coordinates = inputs @ self.eigenvectors
        applied = (coordinates * (function - elsewhere)) @ self.eigenvectors.T
        return applied + elsewhere * inputs


def margin_vectors(
    rows: Callable[[], Iterable[GradientBatch]],
    plan: FeaturePlan,
    stored_weighting: Weighting | None = None,
) -> CurvaturePieces:
    """Gradients of TRAK's margin up to sign, φ / (1 − p), whose mean outer product is TRAK's kernel over its count.

    Examples whose 1 − p is below `LEAST_MARGIN` have one that is rounding, and are left out of the kernel.

    Raises:
        UsageError: on the way, for losses that are not −log p.
        DataError: on the way, when no example is left.
    """

    def pieces() -> Iterator[tuple[int, Tensor]]:
        kept_count = 0
        for part in rows():
            margins = one_minus_probability(part.losses)
            kept = margins > LEAST_MARGIN
            vectors = unweighted_vectors(part.vectors, plan, stored_weighting).double()[kept]
            kept_count += len(vectors)
            yield len(vectors), vectors / margins[kept].unsqueeze(1)
        if kept_count == 0:
            raise DataError(
                "Every example has a loss of zero, so that TRAK's kernel has no margin gradients.",
                "Use an earlier checkpoint, or another method.",
            )

    return CurvaturePieces("empirical", plan, pieces())


class _SecondMoment:
    """Σ φ φᵀ: the vectors themselves while they are no more than the dimension, then the matrix."""

    def __init__(self, dimension: int) -> None:
        self._dimension = dimension
        self._vectors: list[Tensor] = []
        self._held = 0
        self._matrix: Tensor | None = None

    def add(self, vectors: Tensor) -> None:
        if self._matrix is None:
            self._vectors.append(vectors)
            self._held += len(vectors)
            if self._held <= self._dimension:
                if self._held > LARGEST_SIDE:
                    raise _too_large(self._dimension)
                return
            if self._dimension > LARGEST_SIDE:
                raise _too_large(self._dimension)
            self._matrix = torch.zeros(self._dimension, self._dimension, dtype=torch.float64)
            vectors, self._vectors = torch.cat(self._vectors), []
        self._matrix.addmm_(vectors.T, vectors)

    def decompose(self, count: int) -> tuple[Tensor, Tensor]:
        """Positive eigenvalues of the sum over `count`, and their eigenvectors."""
        if self._matrix is not None:
            eigenvalues, eigenvectors = torch.linalg.eigh(self._matrix / count)
            kept = _positive(eigenvalues, self._dimension)
            return eigenvalues[kept], eigenvectors[:, kept]
        held = torch.cat(self._vectors)
        eigenvalues, mixtures = torch.linalg.eigh(held @ held.T / count)
        kept = _positive(eigenvalues, self._dimension)
        # v = Φᵀu / √(count λ): the same eigenvalue, and length 1.
        return eigenvalues[kept], held.T @ mixtures[:, kept] / (count * eigenvalues[kept]).sqrt()


def _positive(eigenvalues: Tensor, dimension: int) -> Tensor:
    """Which eigenvalues are above the rounding of the decomposition."""
    largest = eigenvalues.max().clamp_min(0)
    return eigenvalues > max(dimension, len(eigenvalues)) * torch.finfo(torch.float64).eps * largest


def _too_large(dimension: int) -> UsageError:
    return UsageError(
        f"Curvature over all groups together has {dimension} dimensions and as many vectors or more; at most "
        f"{LARGEST_SIDE} are decomposed.",
        "Index with a smaller group dimension, or choose influence, which treats groups apart.",
    )
