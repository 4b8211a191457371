"""Models in half precision: how far rounding moves their gradients."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from gradtrail.attribution.adapters.base import ModelAdapter
from gradtrail.attribution.features.plan import FeaturePlan
from gradtrail.attribution.gradients.forward_passes import hooked_forward
from gradtrail.attribution.gradients.oracle import coarsest_dtype
from gradtrail.attribution.gradients.tracked_model import track_model
from gradtrail.errors import ModelError
from gradtrail.nouns import Example

LARGEST_ROUNDING = 0.2
"""Relative error of a gradient from which on a model in half precision is refused; usual are 0.005 to 0.05."""


def rounding_of_gradients(
    adapter: ModelAdapter,
    model: nn.Module,
    examples: Sequence[Example],
    plan: FeaturePlan,
    device: str | torch.device = "cpu",
) -> float | None:
    """Median relative distance of the examples' gradients from those of the same weights in float32.

    None for a model that is in float32 or better anyway, and where no example has a finite gradient. A second copy of
    the model exists meanwhile.

    Raises:
        ModelError: above `LARGEST_ROUNDING`.
    """
    if torch.finfo(coarsest_dtype(model)).bits >= torch.finfo(torch.float32).bits:
        return None
    own = _vectors(adapter, model, examples, plan, device)
    exact = _vectors(adapter, copy.deepcopy(model).float(), examples, plan, device)
    errors = (own - exact).norm(dim=1) / exact.norm(dim=1)
    errors = errors[errors.isfinite()]
    if not len(errors):
        return None
    found = float(errors.median())
    if found > LARGEST_ROUNDING:
        raise ModelError(
            f"In {coarsest_dtype(model)} rounding moves the gradients of {type(model).__name__} by {found:.0%} (median "
            f"of {len(errors)} examples), of which at most {LARGEST_ROUNDING:.0%} are taken.",
            "Let build_model return the model in float32: weights in half precision load into it.",
        )
    return found


def _vectors(
    adapter: ModelAdapter, model: nn.Module, examples: Sequence[Example], plan: FeaturePlan, device: str | torch.device
) -> Tensor:
    with hooked_forward(track_model(adapter, model, plan, device), examples) as forward:
        return forward.vectors(adapter.losses(forward.outputs, forward.batch)).double()
