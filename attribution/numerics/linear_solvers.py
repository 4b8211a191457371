"""Solvers that see a symmetric matrix only through its products with (parameters, columns) matrices."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from gradtrail.errors import UsageError

PROBES = 8
"""Random vectors that estimate the mean eigenvalue, for relative damping."""
_DIVERGED = 10.0
_ASYMMETRY = 1e-4
_POWER_STEPS = 20
_POWER_MARGIN = 1.25

Product = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class SolverOptions:
    """How far to go: the relative residual at which a solver stops, and how many products it may take.

    A truncated Neumann series stops at `most_products` in any case; conjugate gradients must reach the tolerance.
    """

    tolerance: float = 1e-4
    most_products: int = 500


def refuse_asymmetric(product: Product, like: Tensor) -> None:
    """Compare uᵀ(Gv) with vᵀ(Gu) for one random pair.

    Raises:
        UsageError: when they differ, which happens where torch's second derivatives of a layer are wrong.
    """
    pair = torch.randn(len(like), 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(like)
    image = product(pair)
    gap = (pair[:, 0] @ image[:, 1] - pair[:, 1] @ image[:, 0]).abs().item()
    if gap > _ASYMMETRY * pair[:, 0].norm().item() * image[:, 1].norm().item():
        raise UsageError(
            "The Hessian of this model is not symmetric: torch's second derivatives of some layer are wrong.",
            "Choose curvature ggn, which needs first derivatives of the model only.",
        )


def mean_eigenvalue(product: Product, like: Tensor) -> float:
    """Hutchinson's estimate of the trace over the dimension."""
    signs = torch.randint(0, 2, (len(like), PROBES), generator=torch.Generator().manual_seed(0)) * 2 - 1
    probes = signs.to(like)
    return (probes * product(probes)).sum().item() / probes.numel()


def conjugate_gradients(product: Product, right: Tensor, options: SolverOptions) -> tuple[Tensor, float]:
    """Solve for all columns together (Hestenes and Stiefel, 1952)."""
    size = right.norm(dim=0).clamp_min(torch.finfo(right.dtype).tiny)
    solution, residual = torch.zeros_like(right), right.clone()
    direction, square = residual.clone(), residual.square().sum(0)
    for _ in range(options.most_products):
        if (residual.norm(dim=0) <= options.tolerance * size).all():
            break
        image = product(direction)
        curvature = (direction * image).sum(0)
        if (curvature < 0).any() or not torch.isfinite(curvature).all():
            raise UsageError(
                "The damped curvature is not positive, so conjugate gradients cannot invert it.",
                "Choose curvature ggn, or raise the damping.",
            )
        step = torch.where(curvature > 0, square / curvature, torch.zeros_like(square))
        solution += step * direction
        residual -= step * image
        previous, square = square, residual.square().sum(0)
        direction = residual + torch.where(previous > 0, square / previous, torch.zeros_like(square)) * direction
    left = (residual.norm(dim=0) / size).max().item()
    if left > options.tolerance:
        raise UsageError(
            f"Conjugate gradients left a relative residual of {left:.2g} after {options.most_products} products.",
            "Raise the damping, allow more products, or a larger tolerance.",
        )
    return solution, left


def neumann_series(product: Product, right: Tensor, largest: float, options: SolverOptions) -> tuple[Tensor, float]:
    """α Σ_k (I − αA)ᵏ b, with α below 1 over the `largest` eigenvalue (arXiv 1703.04730, LiSSA with all examples)."""
    size = right.norm(dim=0).clamp_min(torch.finfo(right.dtype).tiny)
    scale = 1 / (_POWER_MARGIN * largest)
    solution, term, left = torch.zeros_like(right), right.clone(), 1.0
    for _ in range(options.most_products):
        solution += scale * term
        term = term - scale * product(term)
        # The next term is the residual of the solution so far.
        left = (term.norm(dim=0) / size).max().item()
        if left <= options.tolerance or not left < _DIVERGED:
            break
    if not left < 1:
        raise UsageError(
            "The Neumann series does not converge: the damped curvature is not positive.",
            "Choose curvature ggn, or raise the damping.",
        )
    return solution, left


def largest_eigenvalue(product: Product, like: Tensor) -> float:
    """Of a symmetric positive matrix, by power iteration from a fixed start.

    Raises:
        UsageError: when there is none: zero, or not finite.
    """
    vector = torch.randn(len(like), 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(like)
    largest = 0.0
    for _ in range(_POWER_STEPS):
        vector = vector / vector.norm()
        vector = product(vector)
        largest = vector.norm().item()
        if not 0 < largest < float("inf"):
            break
    if not 0 < largest < float("inf"):
        raise UsageError(
            f"The damped curvature has a largest eigenvalue of {largest}.", "Raise the damping, and check the losses."
        )
    return largest
