"""Which parameter groups a model has: one per layer with a rule, one per parameter without, and what is left out."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn

from gradtrail.attribution.layers.registry import GradientShape
from gradtrail.attribution.layers.rules import find_rule
from gradtrail.errors import ModelError


@dataclass(frozen=True)
class MeasuredPart:
    """What will be one group: `modules` that share all their parameters, or none for a parameter without a rule."""

    name: str
    modules: tuple[str, ...]
    parameters: tuple[str, ...]
    shape: GradientShape


@dataclass(frozen=True)
class _Layers:
    """Layers that own the same parameters, by `identities`; the first says how the gradient is arranged."""

    identities: tuple[int, ...]
    modules: tuple[str, ...]
    shape: GradientShape
    arranged_alike: bool


def measured_parts(
    model: nn.Module, exclude: Iterable[str] = (), fallback: bool = True, fallback_for: Iterable[str] = ()
) -> list[MeasuredPart]:
    """Layers with a rule in the order of the modules, then parameters without one in their own order.

    A layer in `fallback_for`, one that shares some of its parameters with a layer it cannot be joined with, and one of
    which only some parameters are frozen, count as layers without a rule. Without `fallback` only the layers that
    `fallback_for` names are measured so. Frozen parameters (`requires_grad` False), which training does not move, are
    left out.

    Raises:
        ModelError: when layers share some of their parameters and `fallback` is off.
    """
    named = {id(parameter): name for name, parameter in model.named_parameters()}
    owners = _owners(model)
    excluded = {name for name, _ in model.named_modules() if _matches(name, exclude)}
    forced = {name for name, _ in model.named_modules() if _matches(name, fallback_for)}
    frozen = {id(parameter) for parameter in model.parameters() if not parameter.requires_grad}
    parts, covered = [], set()
    for layers in _layers(model, excluded | forced):
        if not frozen.isdisjoint(layers.identities):
            continue
        shared = [i for i in layers.identities if set(owners[i]) != set(layers.modules)]
        if not shared and layers.arranged_alike:
            covered |= set(layers.identities)
            name = layers.modules[0] or type(model).__name__
            parts.append(MeasuredPart(name, layers.modules, tuple(named[i] for i in layers.identities), layers.shape))
        elif not fallback:
            identity = (shared or layers.identities)[0]
            raise _shared(named[identity], owners[identity])
    for name, parameter in model.named_parameters():
        owned_by = owners[id(parameter)]
        wanted = fallback or not forced.isdisjoint(owned_by)
        left_out = _matches(name, exclude) or not excluded.isdisjoint(owned_by)
        measurable = parameter.requires_grad and parameter.is_floating_point() and parameter.numel() > 0
        if wanted and measurable and not left_out and id(parameter) not in covered:
            rows = len(parameter) if parameter.ndim else 1
            shape = GradientShape(1, rows, parameter.numel() // rows)
            parts.append(MeasuredPart(name, (), (name,), shape))
    return parts


def _layers(model: nn.Module, left_out: set[str]) -> Iterator[_Layers]:
    by_parameters: dict[tuple[int, ...], list[str]] = defaultdict(list)
    unseen = _unseen_output_projections(model)
    for name, module in model.named_modules():
        rule = find_rule(module)
        if rule is not None and name not in left_out and id(module) not in unseen:
            by_parameters[tuple(id(parameter) for parameter in rule.parameters(module).values())].append(name)
    for identities, modules in by_parameters.items():
        arranged = [_arrangement(model.get_submodule(name)) for name in modules]
        # A gradient that has to be turned may hold nothing but the weight.
        turned = {transposes for _, _, transposes in arranged}
        alike = len({as_stored for _, as_stored, _ in arranged}) == 1 and (len(turned) == 1 or len(identities) == 1)
        yield _Layers(identities, tuple(modules), arranged[0][0], alike)


def _arrangement(layer: nn.Module) -> tuple[GradientShape, GradientShape, bool]:
    """The shape of a layer's gradient as its rule arranges it, as its weight is stored, and whether they differ."""
    rule = find_rule(layer)
    if rule is None:
        raise ModelError(f"{type(layer).__name__} has no rule.", "Plan the features of the model that is measured.")
    shape = rule.shape(layer)
    return shape, shape.transposed if rule.transposes else shape, rule.transposes


def _unseen_output_projections(model: nn.Module) -> set[int]:
    """Output projections of attention that has no rule: their weight is used without calling them."""
    attention = (module for module in model.modules() if isinstance(module, nn.MultiheadAttention))
    return {id(module.out_proj) for module in attention if find_rule(module) is None}


def _owners(model: nn.Module) -> dict[int, list[str]]:
    owners: dict[int, list[str]] = defaultdict(list)
    for name, module in model.named_modules():
        for parameter in module.parameters(recurse=False):
            owners[id(parameter)].append(name)
    return owners


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _shared(parameter: str, owners: Iterable[str]) -> ModelError:
    return ModelError(
        f"Parameter {parameter} is shared by {', '.join(owners)}, and not every use of it is covered by one layer "
        "rule, so its gradient would be incomplete.",
        "Allow FeatureSettings.fallback, or leave all these layers out with FeatureSettings.exclude; they are then "
        "reported as uncovered.",
    )
