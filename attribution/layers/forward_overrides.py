"""Layers whose `forward` is replaced for a while by one that computes the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from gradtrail.attribution.layers.registry import LayerRule
from gradtrail.attribution.layers.rules import find_rule
from gradtrail.attribution.numerics.products import frozen_linear, has_faster_products

AffineLayer = tuple[nn.Module, LayerRule]


def override_forward(layer: nn.Module, forward: Callable[..., Any], stack: ExitStack) -> None:
    """Call `forward` in place of the layer's own until `stack` closes."""
    layer.forward = forward
    stack.callback(vars(layer).pop, "forward")


def fast_affine_layers(model: nn.Module, device: str | torch.device) -> tuple[AffineLayer, ...]:
    """The layers that faster products can stand in for; none where they are not faster."""
    return tuple(_affine(model)) if torch.device(device).type == "cpu" and has_faster_products() else ()


def use_faster_products(
    layers: tuple[AffineLayer, ...], stack: ExitStack, wanted: Callable[[], bool] = lambda: True
) -> None:
    """Let the layers use faster products until `stack` closes, in each call in which they are `wanted`."""
    for layer, rule in layers:
        override_forward(layer, _faster(layer, rule, wanted), stack)


def _affine(model: nn.Module) -> Iterator[AffineLayer]:
    for layer in model.modules():
        rule = find_rule(layer)
        if rule is not None and rule.affine(layer) is not None:
            yield layer, rule


def _faster(layer: nn.Module, rule: LayerRule, wanted: Callable[[], bool]) -> Callable[..., Tensor]:
    own = layer.forward

    def forward(*args: Tensor, **kwargs: Tensor) -> Tensor:
        affine = rule.affine(layer) if wanted() else None
        if affine is None:
            output: Tensor = own(*args, **kwargs)
            return output
        (inputs,) = (*args, *kwargs.values())
        return frozen_linear(inputs, *affine)

    return forward
