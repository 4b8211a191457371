"""The gradient of one example as plain autograd gives it, which every other way of measuring is held to."""

from __future__ import annotations

from math import sqrt

import torch
from torch import Tensor, nn

from gradtrail.attribution.features.plan import FeaturePlan
from gradtrail.attribution.gradients.eval_mode import frozen_in_eval
from gradtrail.attribution.gradients.tracked_model import TrackedModel
from gradtrail.attribution.gradients.weight_gradients import weight_gradients
from gradtrail.nouns import Example

_CANCELLED = 0.1
"""Share of the whole gradient by whose rounding a layer's own may be off."""


def autograd_vector(tracked: TrackedModel, example: Example) -> Tensor:
    """The projected weight gradient of one example's loss by plain autograd: (dimension,)."""
    adapter, model, plan = tracked.adapter, tracked.model, tracked.plan
    batch = adapter.collate([example]).to(tracked.device)
    names = [name for group in plan.groups for name in group.parameters]
    with frozen_in_eval(model):
        found = iter(
            weight_gradients(tracked.run, model, names, batch, lambda outputs: adapter.losses(outputs, batch).sum())
        )
    pieces = []
    for place, group in enumerate(plan.groups):
        own = [next(found).unsqueeze(0) for _ in group.parameters]
        pieces.append(tracked.whole_group(place).project(own)[0])
    return torch.cat(pieces)


def unlike_autograd(found: Tensor, expected: Tensor, plan: FeaturePlan, dtype: torch.dtype) -> list[int]:
    """The places of the groups in which two vectors (dimension,) differ by more than the rounding of `dtype`."""
    # What cancels out in a layer leaves rounding of the size of the whole.
    least = _CANCELLED * expected.norm()
    return [
        place
        for place, columns in enumerate(plan.slices)
        if not (found[columns] - expected[columns]).norm() <= rounding(dtype) * (expected[columns].norm() + least)
    ]


def rounding(dtype: torch.dtype) -> float:
    """Relative difference up to which results of a model in `dtype` count as the same."""
    return sqrt(torch.finfo(dtype).eps)


def coarsest_dtype(model: nn.Module, *others: torch.dtype | None) -> torch.dtype:
    """The floating point type with the fewest digits among the model's parameters and `others`, else float32."""
    found = {parameter.dtype for parameter in model.parameters()}.union(others)
    real = [dtype for dtype in found if dtype is not None and dtype.is_floating_point]
    return max(real or [torch.float32], key=lambda dtype: torch.finfo(dtype).eps)
