"""1 − p from stored losses: how a loss gradient becomes the gradient of TRAK's margin (arXiv 2303.14186).

For the cross entropy −log p and the margin m = log(p / (1 − p)): ∇m = −∇loss / (1 − p).
"""

from __future__ import annotations

import torch
from torch import Tensor

from gradtrail.attribution.adapters.base import ClassificationAdapter, ModelAdapter
from gradtrail.errors import UsageError

LEAST_MARGIN = 16 * torch.finfo(torch.float32).eps
"""The 1 − p below which a loss computed in float32 is rounding."""


def require_probabilities(adapter: ModelAdapter) -> None:
    """Refuse models whose loss is not −log p of one class.

    Raises:
        UsageError: for another adapter, or a ClassificationAdapter with a loss of its own.
    """
    if type(adapter).losses is not ClassificationAdapter.losses:
        raise UsageError(
            f"Method trak reads 1 − p from the loss −log p, but {type(adapter).__name__} is no ClassificationAdapter "
            "with its cross entropy.",
            "Choose another method, for example influence_global.",
        )


def one_minus_probability(losses: Tensor) -> Tensor:
    """1 − p = −expm1(−loss), (batch,) float64.

    Raises:
        UsageError: for negative losses, which no −log p has.
    """
    values = losses.double()
    if (values < 0).any():
        raise UsageError(
            f"Method trak reads 1 − p from the loss −log p, but met a loss of {values.min().item():.4g}.",
            "Choose another method, for example influence_global.",
        )
    return -torch.expm1(-values)
