"""What measuring a model takes, whichever batch: its plan, projections, and the way for parameters without a rule."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from gradtrail.attribution.adapters.base import ModelAdapter
from gradtrail.attribution.features.plan import FeaturePlan
from gradtrail.attribution.gradients.eval_mode import forward_pass
from gradtrail.attribution.gradients.fallback import WholeGroup
from gradtrail.attribution.gradients.routes import Routes
from gradtrail.attribution.gradients.weight_gradients import Run
from gradtrail.attribution.layers.forward_overrides import AffineLayer, fast_affine_layers
from gradtrail.attribution.layers.registry import LayerRule, Projections
from gradtrail.attribution.layers.rules import ScaleRule, find_rule
from gradtrail.errors import ModelError

_SCALE = ScaleRule()


@dataclass(frozen=True)
class LayerUse:
    """One way in which a layer's weight is used: the group it fills, and how its gradient is projected there.

    `turned` says that rows and columns are those of another layer, which shares the weight, the other way round.
    """

    name: str
    place: int
    layer: nn.Module
    rule: LayerRule
    projections: Projections
    turned: bool = False


@dataclass
class TrackedModel:
    """Everything that stays the same from batch to batch; `model` is on `device`.

    `routes` are found with the first batch: how each group is measured.

    `uses` are the layers that a hook measures. `attention` is taken apart: each layer by name, with the use of its
    packed projection, or None where that is left out. `affine` are the layers, measured or not, that faster products
    can stand in for.
    """

    adapter: ModelAdapter
    model: nn.Module
    plan: FeaturePlan
    projections: tuple[Projections, ...]
    device: str | torch.device
    run: Run
    uses: tuple[LayerUse, ...]
    attention: Mapping[str, tuple[nn.MultiheadAttention, LayerUse | None]]
    affine: tuple[AffineLayer, ...]
    routes: Routes | None = None

    @property
    def every_use(self) -> tuple[LayerUse, ...]:
        """All uses that a rule measures, those inside of attention too."""
        return (*self.uses, *(use for _, use in self.attention.values() if use is not None))

    @property
    def supposed(self) -> frozenset[int]:
        """The places of groups without a rule of their own that one could measure all the same."""
        return frozenset(use.place for use in self.uses if not self.plan.groups[use.place].modules)

    def whole_group(self, place: int) -> WholeGroup:
        """The group at a place of the plan, as it is measured without hooks."""
        group = self.plan.groups[place]
        for use in self.every_use:
            if group.modules and use.name == group.modules[0]:
                return WholeGroup(place, group, self.projections[place], use.layer, use.rule)
        return WholeGroup(place, group, self.projections[place])


def track_model(
    adapter: ModelAdapter, model: nn.Module, plan: FeaturePlan, device: str | torch.device = "cpu"
) -> TrackedModel:
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
    projections = plan.projections(dtype, device)
    uses = [use for place in range(len(plan.groups)) for use in _uses(model, plan, place, projections[place])]
    uses += _scales(model, plan, projections)
    planned = {use.name: use for use in uses}
    attention = {
        name: (layer, planned.get(name))
        for name, layer in model.named_modules()
        if isinstance(layer, nn.MultiheadAttention) and not {name, f"{name}.out_proj"}.isdisjoint(planned)
    }
    hooked = tuple(use for use in uses if use.name not in attention)
    affine = fast_affine_layers(model, device)
    return TrackedModel(adapter, model, plan, projections, device, run, hooked, attention, affine)


def _uses(model: nn.Module, plan: FeaturePlan, place: int, projections: Projections) -> Iterator[LayerUse]:
    found = [(name, *planned_layer(model, name)) for name in plan.groups[place].modules]
    for name, layer, rule in found:
        turned = rule.transposes != found[0][2].transposes
        yield LayerUse(name, place, layer, rule, projections.exchanged if turned else projections, turned)


def _scales(model: nn.Module, plan: FeaturePlan, projections: tuple[Projections, ...]) -> Iterator[LayerUse]:
    """Uses of bare parameters that are probably weights of a norm; routes find out."""
    owners: dict[int, list[str]] = {}
    for name, module in model.named_modules():
        for parameter in module.parameters(recurse=False):
            owners.setdefault(id(parameter), []).append(name)
    every = dict(model.named_parameters())
    for place, group in enumerate(plan.groups):
        if group.modules:
            continue
        own = owners[id(every[group.parameters[0]])]
        layer = model.get_submodule(own[0])
        if len(own) == 1 and _SCALE.could_measure(layer):
            yield LayerUse(own[0], place, layer, _SCALE, projections[place])


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
