"""The layer rules of norms: torch's own, and those of timm, torchvision and transformers that compute the same.

The libraries' norms have a `forward` of their own: channels stand elsewhere, or an activation follows.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from gradtrail.attribution.layers.registry import GradientShape, LayerRule, Projections, layer_rule

BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d


class NormRule(LayerRule):
    """Affine norms y = w ∘ x̂ + b: rows are Σ_t s_t ∘ x̂_t and Σ_t s_t, columns the channels."""

    @abstractmethod
    def normalised(self, layer: Any, inputs: Tensor) -> Tensor:
        """x̂, in the shape of the inputs."""

    def by_channel(self, layer: Any, values: Tensor) -> Tensor:
        """Values (batch, …, channels) as (batch, channels, positions); a rule with channels elsewhere overrides it."""
        return values.reshape(len(values), -1, layer.weight.numel()).transpose(1, 2)

    def shape(self, layer: Any) -> GradientShape:
        return GradientShape(1, len(list(layer.parameters())), layer.weight.numel())

    def keep(self, layer: Any, inputs: Tensor, projections: Projections) -> Tensor:  # noqa: ARG002 (the interface)
        return self.by_channel(layer, self.normalised(layer, inputs))

    def before_activation(self, layer: Any, normed: Tensor, gradients: Tensor) -> Tensor:  # noqa: ARG002 (layers that activate override this)
        """Gradients (batch, channels, positions) at w ∘ x̂ + b, from those at the output; `normed` is x̂."""
        return gradients

    def gradient(self, layer: Any, kept: Tensor, output_gradients: Tensor, projections: Projections) -> Tensor:
        gradients = self.before_activation(layer, kept, self.by_channel(layer, output_gradients))
        rows = [(gradients * kept).sum(2), gradients.sum(2)][: self.shape(layer).rows]
        joined = torch.stack(rows, dim=1) @ projections.inputs[0]
        return (projections.outputs[0].T @ joined).flatten(1)

    def matrix(self, layer: Any, gradients: Mapping[str, Tensor]) -> Tensor:  # noqa: ARG002 (the interface)
        present = [gradients[name].flatten() for name in ("weight", "bias") if name in gradients]
        return torch.stack(present).unsqueeze(0)


@layer_rule(nn.LayerNorm, "timm.layers.norm.LayerNorm", "timm.layers.norm.LayerNormFp32")
class LayerNormRule(NormRule):
    """Normalised over the last dimensions of each position."""

    sequential = True

    def normalised(self, layer: nn.LayerNorm, inputs: Tensor) -> Tensor:
        return functional.layer_norm(inputs, layer.normalized_shape, eps=layer.eps)


@layer_rule(nn.RMSNorm)
class RootMeanSquareNormRule(NormRule):
    """Divided by the root mean square over the last dimensions of each position."""

    sequential = True

    def normalised(self, layer: nn.RMSNorm, inputs: Tensor) -> Tensor:
        return functional.rms_norm(inputs, list(layer.normalized_shape), eps=layer.eps)


@layer_rule(nn.GroupNorm, "timm.layers.norm.GroupNorm", "timm.layers.norm.GroupNorm1")
class GroupNormRule(NormRule):
    """Normalised over groups of channels of each example."""

    def normalised(self, layer: nn.GroupNorm, inputs: Tensor) -> Tensor:
        return functional.group_norm(inputs, layer.num_groups, eps=layer.eps)

    def by_channel(self, layer: nn.GroupNorm, values: Tensor) -> Tensor:
        return values.reshape(len(values), layer.num_channels, -1)


@layer_rule(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
class BatchNormRule(NormRule):
    """In eval mode, with running statistics: batch statistics would couple the examples."""

    def supports(self, layer: BatchNorm) -> bool:
        return layer.running_mean is not None and layer.running_var is not None

    def normalised(self, layer: BatchNorm, inputs: Tensor) -> Tensor:
        mean, variance = layer.running_mean, layer.running_var
        return functional.batch_norm(inputs, mean, variance, training=False, eps=layer.eps)

    def by_channel(self, layer: BatchNorm, values: Tensor) -> Tensor:
        return values.reshape(len(values), layer.num_features, -1)


@layer_rule(
    "timm.layers.norm.LayerNorm2d",
    "timm.layers.norm.LayerNorm2dFp32",
    "torchvision.models.convnext.LayerNorm2d",
)
class ImageLayerNormRule(NormRule):
    """Layer norm over the channels of an image, which are the first dimension after the example."""

    def normalised(self, layer: nn.LayerNorm, inputs: Tensor) -> Tensor:
        last = inputs.movedim(1, -1)
        return functional.layer_norm(last, layer.normalized_shape, eps=layer.eps).movedim(-1, 1)

    def by_channel(self, layer: nn.LayerNorm, values: Tensor) -> Tensor:
        return values.reshape(len(values), layer.weight.numel(), -1)


@layer_rule(
    "transformers.models.convnext.modeling_convnext.ConvNextLayerNorm",
    "transformers.models.convnextv2.modeling_convnextv2.ConvNextV2LayerNorm",
)
class EitherLayerNormRule(ImageLayerNormRule):
    """Layer norm whose `data_format` says whether channels are first or last."""

    def normalised(self, layer: Any, inputs: Tensor) -> Tensor:
        if layer.data_format == "channels_first":
            return super().normalised(layer, inputs)
        return functional.layer_norm(inputs, layer.normalized_shape, eps=layer.eps)

    def by_channel(self, layer: Any, values: Tensor) -> Tensor:
        if layer.data_format == "channels_first":
            return super().by_channel(layer, values)
        return NormRule.by_channel(self, layer, values)


@layer_rule("timm.layers.norm.RmsNorm2d", "timm.layers.norm.RmsNorm2dFp32")
class ImageRootMeanSquareNormRule(ImageLayerNormRule):
    """Root mean square norm over the channels of an image."""

    def normalised(self, layer: Any, inputs: Tensor) -> Tensor:
        return inputs * torch.rsqrt(inputs.square().mean(1, keepdim=True) + layer.eps)


class ActivatedRule(NormRule):
    """A norm of timm that goes on with dropout and an activation, `drop` and `act`, entry by entry.

    The gradient at the output is first taken back through these.
    """

    def before_activation(self, layer: Any, normed: Tensor, gradients: Tensor) -> Tensor:
        if isinstance(layer.act, nn.Identity) and isinstance(layer.drop, nn.Identity):
            return gradients
        weight, bias = layer.weight.detach().to(normed.dtype), getattr(layer, "bias", None)
        with torch.enable_grad():
            affine = normed * weight.reshape(1, -1, 1)
            if bias is not None:
                affine = affine + bias.detach().to(normed.dtype).reshape(1, -1, 1)
            affine.requires_grad_()
            # Activations may work in place, which a leaf does not allow.
            activated = layer.act(layer.drop(affine.clone()))
        before: Tensor = torch.autograd.grad(activated, affine, gradients.to(activated.dtype))[0]
        return before


@layer_rule("timm.layers.norm_act.BatchNormAct2d")
class ActivatedBatchNormRule(ActivatedRule, BatchNormRule):
    """Batch norm and an activation."""


@layer_rule("timm.layers.norm_act.GroupNormAct", "timm.layers.norm_act.GroupNorm1Act")
class ActivatedGroupNormRule(ActivatedRule, GroupNormRule):
    """Group norm and an activation."""


@layer_rule("timm.layers.norm_act.LayerNormAct", "timm.layers.norm_act.LayerNormActFp32")
class ActivatedLayerNormRule(ActivatedRule, LayerNormRule):
    """Layer norm and an activation."""


@layer_rule("timm.layers.norm_act.LayerNormAct2d", "timm.layers.norm_act.LayerNormAct2dFp32")
class ActivatedImageLayerNormRule(ActivatedRule, ImageLayerNormRule):
    """Layer norm over the channels of an image, and an activation."""


@layer_rule("timm.layers.norm_act.RmsNormAct", "timm.layers.norm_act.RmsNormActFp32")
class ActivatedRootMeanSquareNormRule(ActivatedRule, RootMeanSquareNormRule):
    """Root mean square norm and an activation."""


@layer_rule("timm.layers.norm_act.RmsNormAct2d", "timm.layers.norm_act.RmsNormAct2dFp32")
class ActivatedImageRootMeanSquareNormRule(ActivatedRule, ImageRootMeanSquareNormRule):
    """Root mean square norm over the channels of an image, and an activation."""
