"""Projection matrices of kind `eigen`: leading eigenvectors of the Kronecker factors, and a sketch of the rest.

They are kept as numbers and named by their digest: another machine's eigensolver may turn signs or mix equal
eigenvalues, so outputs must be measured with the very matrices the index was.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from gradtrail.attribution.projection.random import ProjectionSide, projection_matrix
from gradtrail.errors import StoreError

EIGEN_VERSION = 2
"""Part of every index id with eigen projection. Raise it whenever the way from factors to matrices changes."""
SKETCH_SHARE = 8
"""One column in this many, at least one, sketches the complement of the eigenvectors."""


@dataclass(frozen=True)
class EigenBasis:
    """Projection matrices (blocks, width, projected) float64 by `side_key`; any other side is projected randomly.

    `kind` is that of the curvature whose factors they diagonalise.
    """

    kind: str
    matrices: Mapping[str, Tensor]

    @cached_property
    def digest(self) -> str:
        """sha256 of the kind and every name, shape and number."""
        digest = hashlib.sha256(f"eigen {EIGEN_VERSION} {self.kind}".encode())
        for name in sorted(self.matrices):
            matrix = self.matrices[name]
            digest.update(f"\n{name} {tuple(matrix.shape)}\n".encode())
            digest.update(matrix.contiguous().numpy().tobytes())
        return digest.hexdigest()

    def to_tensors(self) -> dict[str, Tensor]:
        """Named tensors for a safetensors file; `from_tensors` reads them back."""
        return {name: matrix.contiguous() for name, matrix in self.matrices.items()}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], kind: str, digest: str) -> EigenBasis:
        """Read back `to_tensors` of the basis that has this kind and digest.

        Raises:
            StoreError: when the numbers are not those of `digest`.
        """
        basis = cls(kind, dict(tensors))
        if basis.digest != digest:
            raise StoreError(
                f"A stored eigenbasis has digest {basis.digest}, but the index was measured with {digest}.",
                "Restore the file from a backup, or index again.",
            )
        return basis

    def config(self, seed: int) -> dict[str, str | int]:
        """What the id of an index says about its projection."""
        return {
            "kind": "eigen",
            "seed": seed,
            "version": EIGEN_VERSION,
            "factors": self.kind,
            "digest": self.digest,
        }

    def matrix(self, group: str, side: ProjectionSide, shape: tuple[int, int, int]) -> Tensor | None:
        """The matrix of one side of a group, or None where it is projected as without a basis.

        Raises:
            StoreError: when it has another shape than the group needs.
        """
        found = self.matrices.get(side_key(group, side))
        if found is not None and tuple(found.shape) != shape:
            raise StoreError(
                f"The eigenbasis of group {group} has shape {tuple(found.shape)} where {shape} is needed.",
                "Fit the basis for this very model and group dimension.",
            )
        return found


def side_key(group: str, side: ProjectionSide) -> str:
    """The name of one side's matrix."""
    return f"{side}:{group}"


def whole_basis(factor: Tensor) -> Tensor:
    """All eigenvectors of every block, leading ones first: (blocks, width, width) from (blocks, width, width)."""
    _, eigenvectors = torch.linalg.eigh(factor)
    return torch.flip(eigenvectors, [-1])


def leading_basis(factor: Tensor, columns: int, *, seed: int, group: str, side: ProjectionSide) -> Tensor:
    """P with E[P Pᵀ] = I that holds the leading eigenvectors: (blocks, width, columns) from (blocks, width, width).

    Eigenvectors are ranked over all blocks together. Where some are dropped, one column in `SKETCH_SHARE` is a random
    mixture of what was dropped, so that inverse curvature, which amplifies it, still sees its size.
    """
    blocks, width, _ = factor.shape
    rows = blocks * width
    eigenvalues, eigenvectors = torch.linalg.eigh(factor)
    order = eigenvalues.flatten().argsort(descending=True, stable=True)
    sketched = 0 if columns == rows else max(1, columns // SKETCH_SHARE)
    leading = torch.zeros(rows, columns - sketched, dtype=torch.float64)
    for column, position in enumerate(order[: columns - sketched].tolist()):
        block, vector = divmod(position, width)
        leading[block * width : (block + 1) * width, column] = eigenvectors[block, :, vector]
    if sketched:
        random = projection_matrix(rows, sketched, seed=seed, group=group, side=side, dtype=torch.float64)
        leading = torch.cat([leading, random - leading @ (leading.T @ random)], dim=1)
    return leading.reshape(blocks, width, columns)
