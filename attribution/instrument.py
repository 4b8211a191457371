"""What measuring a model takes, whichever batch: its plan, projections, and the way for parameters without a rule."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from gradtrail.attribution.adapters import ModelAdapter
from gradtrail.attribution.fallback import Fallback
from gradtrail.attribution.features import FeaturePlan
from gradtrail.attribution.layer_rules import LayerRule, Projections
from gradtrail.attribution.layers import find_rule
from gradtrail.attribution.weight_gradients import Run
from gradtrail.attribution.working_mode import forward_pass
from gradtrail.errors import ModelError


@dataclass(frozen=True)
class Instrument:
    """Everything that stays the same from batch to batch; `model` is on `device`."""

    adapter: ModelAdapter
    model: nn.Module
    plan: FeaturePlan
    projections: tuple[Projections, ...]
    device: str | torch.device
    fallback: Fallback | None
    run: Run


def build_instrument(
    adapter: ModelAdapter, model: nn.Module, plan: FeaturePlan, device: str | torch.device = "cpu"
) -> Instrument:
    """The projections are in the type the arithmetic runs in: the model's, but at least float32 and the plan's."""
    dtype = torch.promote_types(torch.float32, plan.dtype)
    for parameter in model.parameters():
        if parameter.is_floating_point():
            dtype = torch.promote_types(dtype, parameter.dtype)
    names = [name for group in plan.groups if not group.modules for name in group.parameters]
    missing = sorted(set(names) - set(dict(model.named_parameters())))
    if missing:
        raise _unplanned(missing[0], model)
    run = forward_pass(adapter, plan.lower_precision, device)
    fallback = Fallback(run, model, names) if names else None
    return Instrument(adapter, model, plan, plan.projections(dtype, device), device, fallback, run)


def planned_layer(model: nn.Module, name: str) -> tuple[nn.Module, LayerRule]:
    """The layer a plan names, and its rule; ModelError when `model` is not the one that was planned."""
    layer = dict(model.named_modules()).get(name)
    rule = find_rule(layer) if layer is not None else None
    if layer is None or rule is None:
        raise _unplanned(name, model)
    return layer, rule


def _unplanned(name: str, model: nn.Module) -> ModelError:
    return ModelError(
        f"The feature plan names {name!r}, which {type(model).__name__} does not have in that form.",
        "Plan the features of the very model that is measured.",
    )
