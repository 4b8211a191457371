"""The layer rules: what the gradient of each layer type is. To support a layer, read one and add one.

Every rule is exact: a test compares it with autograd, one example at a time.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from gradtrail.attribution.layers.registry import (
    FeaturesLastRule,
    GradientShape,
    LayerRule,
    OuterProductRule,
    Projections,
    features_first,
    find_rule,
    layer_rule,
)

__all__ = ["find_rule"]


Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d
TransposedConvolution = nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d

_CONVOLUTIONS = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}


@layer_rule(nn.Linear, "timm.layers.linear.Linear")
class LinearRule(FeaturesLastRule):
    """y = W a + b over any number of middle dimensions."""

    sequential = True

    def shape(self, layer: nn.Linear) -> GradientShape:
        return GradientShape(1, layer.out_features, layer.in_features + (layer.bias is not None))

    def keep(self, layer: nn.Linear, inputs: Tensor, projections: Projections) -> Tensor:
        return _affine_positions(inputs, projections.inputs[0], layer.in_features)

    def affine(self, layer: nn.Linear) -> tuple[Tensor, Tensor | None]:
        return layer.weight, layer.bias


@layer_rule(nn.Conv1d, nn.Conv2d, nn.Conv3d)
class ConvolutionRule(OuterProductRule):
    """The linear rule on patches, one block per channel group.

    A convolution whose kernels are the columns of the projection gives the projected patches without unfolding them.
    """

    def shape(self, layer: Convolution) -> GradientShape:
        patch = layer.weight[0].numel()
        return GradientShape(layer.groups, layer.out_channels // layer.groups, patch + (layer.bias is not None))

    def keep(self, layer: Convolution, inputs: Tensor, projections: Projections) -> Tensor:
        if _has_small_blocks(layer, projections):
            return inputs.clone()
        patch = layer.weight[0].numel()
        blocks, columns, width = projections.inputs.shape
        kernels = projections.inputs[:, :patch].transpose(1, 2).reshape(blocks * width, *layer.weight.shape[1:])
        ones = projections.inputs[:, patch].reshape(blocks * width) if columns > patch else None
        # The layer's own convolution with other kernels: it knows stride, dilation, groups and every padding mode.
        projected: Tensor = layer._conv_forward(inputs, kernels, ones)
        return projected.reshape(len(inputs), blocks, width, -1)

    def gradient(self, layer: Convolution, kept: Tensor, output_gradients: Tensor, projections: Projections) -> Tensor:
        if not _has_small_blocks(layer, projections):
            return super().gradient(layer, kept, output_gradients, projections)
        whole = _example_gradients(layer, kept, output_gradients)
        if layer.bias is not None:
            sums = self.output_blocks(layer, output_gradients).sum(3, keepdim=True)
            whole = torch.cat([whole, sums], dim=3)
        if projections.exact:
            return whole.flatten(1)
        projected = whole @ projections.inputs
        return (projections.outputs.flatten(0, 1).T @ projected.flatten(1, 2)).flatten(1)

    def output_blocks(self, layer: Convolution, output_gradients: Tensor) -> Tensor:
        return output_gradients.reshape(len(output_gradients), layer.groups, layer.out_channels // layer.groups, -1)


def _has_small_blocks(layer: Convolution, projections: Projections) -> bool:
    """Whether channel groups are so small that whole gradients cost less than both projections: depthwise ones.

    Never where no output is asked for: an eigenbasis is fitted to what `keep` says of the inputs alone.
    """
    _, rows, outputs = projections.outputs.shape
    _, columns, inputs = projections.inputs.shape
    return layer.groups > 1 and rows > 0 and rows * columns <= rows * outputs + columns * inputs + outputs * inputs


def _example_gradients(layer: Convolution, inputs: Tensor, output_gradients: Tensor) -> Tensor:
    """The weight's gradient of each example: (batch, groups, rows, patch).

    One backward step of a convolution in which the channel groups of all examples are groups of their own.
    """
    size, dimensions = len(inputs), layer.weight.ndim - 2
    padding: Any = layer.padding
    if layer.padding_mode != "zeros" or isinstance(padding, str):
        mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
        inputs, padding = functional.pad(inputs, layer._reversed_padding_repeated_twice, mode=mode), (0,) * dimensions
    gradients: Tensor = torch.ops.aten.convolution_backward(
        output_gradients.reshape(1, -1, *output_gradients.shape[2:]),
        inputs.reshape(1, -1, *inputs.shape[2:]),
        inputs.new_empty(1).expand(size * len(layer.weight), *layer.weight.shape[1:]),
        None,
        layer.stride,
        padding,
        layer.dilation,
        False,
        [0] * dimensions,
        size * layer.groups,
        [False, True, False],
    )[1]
    return gradients.reshape(size, layer.groups, len(layer.weight) // layer.groups, -1)


@layer_rule(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
class TransposedConvolutionRule(LayerRule):
    """The linear rule with patches on the side of the outputs, one block per channel group.

    Rows are (output channel, kernel position), columns the input channels. The bias is a last column: its gradient
    stands at the first kernel position of each channel, and zeros at the others.
    """

    transposes = True

    def shape(self, layer: TransposedConvolution) -> GradientShape:
        channels = layer.in_channels // layer.groups
        return GradientShape(layer.groups, layer.weight[0].numel(), channels + (layer.bias is not None))

    def keep(self, layer: TransposedConvolution, inputs: Tensor, projections: Projections) -> Tensor:
        grouped = inputs.reshape(len(inputs), layer.groups, -1, *inputs.shape[2:])
        return torch.einsum("ngi...,gip->ngp...", grouped, projections.inputs[:, : grouped.shape[2]])

    def gradient(
        self, layer: TransposedConvolution, kept: Tensor, output_gradients: Tensor, projections: Projections
    ) -> Tensor:
        blocks, rows, width = projections.outputs.shape
        kernels = projections.outputs.transpose(1, 2).reshape(blocks * width, *layer.weight.shape[1:])
        convolve = _CONVOLUTIONS[kept.ndim - 3]
        patches = convolve(output_gradients, kernels, None, layer.stride, layer.padding, layer.dilation, blocks)
        # An output padding larger than the stride leaves room for patches that belong to no input.
        for dimension, size in enumerate(kept.shape[3:], start=2):
            patches = patches.narrow(dimension, 0, size)
        summed = "ngot,ngit->ngoi" if projections.exact else "ngot,ngit->noi"
        total = torch.einsum(summed, patches.reshape(len(kept), blocks, width, -1), kept.flatten(3))
        if layer.bias is not None:
            sums = output_gradients.flatten(2).sum(2).reshape(len(kept), blocks, -1)
            first = projections.outputs[:, :: rows // sums.shape[2]]
            summed = "ngo,gop,gq->ngpq" if projections.exact else "ngo,gop,gq->npq"
            total = total + torch.einsum(summed, sums, first, projections.inputs[:, -1])
        return total.flatten(1)

    def matrix(self, layer: TransposedConvolution, gradients: Mapping[str, Tensor]) -> Tensor:
        shape = self.shape(layer)
        matrices = gradients["weight"].reshape(shape.blocks, -1, shape.rows).transpose(1, 2)
        if "bias" not in gradients:
            return matrices
        sums = gradients["bias"].reshape(shape.blocks, -1)
        column = matrices.new_zeros(shape.blocks, shape.rows, 1)
        column[:, :: shape.rows // sums.shape[1], 0] = sums
        return torch.cat([matrices, column], dim=2)


@layer_rule(nn.MultiheadAttention)
class AttentionRule(FeaturesLastRule):
    """The packed projection of queries, keys and values, whose rows are those of the three in turn.

    It is used without a call that a hook could see; `gradtrail.attribution.layers.attention` takes the layer apart. Its
    output projection is a linear layer like any other. Projections of their own for keys and values of other widths,
    and the biases that are appended to keys and values, have no rule.
    """

    sequential = True

    def parameters(self, layer: nn.Module) -> dict[str, nn.Parameter]:
        own = dict(layer.named_parameters(recurse=False))
        return {name: own[name] for name in ("in_proj_weight", "in_proj_bias") if name in own}

    def owns(self, layer: nn.Module) -> bool:
        known = {"in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias", "bias_k", "bias_v"}
        names = set(dict(layer.named_parameters()))
        return {"in_proj_weight", "out_proj.weight"} <= names <= known

    def shape(self, layer: nn.MultiheadAttention) -> GradientShape:
        return GradientShape(1, 3 * layer.embed_dim, layer.embed_dim + (layer.in_proj_bias is not None))

    def keep(self, layer: nn.MultiheadAttention, inputs: Tensor, projections: Projections) -> Tensor:
        return _affine_positions(inputs, projections.inputs[0], layer.embed_dim)

    def matrix(self, layer: nn.MultiheadAttention, gradients: Mapping[str, Tensor]) -> Tensor:
        return super().matrix(layer, {name.removeprefix("in_proj_"): part for name, part in gradients.items()})


@layer_rule("transformers.pytorch_utils.Conv1D")
class TransposedLinearRule(FeaturesLastRule):
    """The linear layer of GPT-2 in Hugging Face transformers, whose weight is (inputs, outputs)."""

    transposes = True
    sequential = True

    def shape(self, layer: Any) -> GradientShape:
        inputs, outputs = layer.weight.shape
        return GradientShape(1, outputs, inputs + (layer.bias is not None))

    def keep(self, layer: Any, inputs: Tensor, projections: Projections) -> Tensor:
        return _affine_positions(inputs, projections.inputs[0], layer.weight.shape[0])

    def affine(self, layer: Any) -> tuple[Tensor, Tensor | None]:
        return layer.weight.T, layer.bias

    def matrix(self, layer: Any, gradients: Mapping[str, Tensor]) -> Tensor:
        return super().matrix(layer, {**gradients, "weight": gradients["weight"].T})


@layer_rule(nn.Embedding)
class EmbeddingRule(FeaturesLastRule):
    """The linear rule on one-hot inputs: projecting one is looking up a row of the projection."""

    transposes = True
    sequential = True

    def supports(self, layer: nn.Embedding) -> bool:
        # Renormalisation changes the weight in the forward pass; scaling by frequency couples the examples of a batch.
        return layer.max_norm is None and not layer.scale_grad_by_freq

    def shape(self, layer: nn.Embedding) -> GradientShape:
        return GradientShape(1, layer.embedding_dim, layer.num_embeddings)

    def keep(self, layer: nn.Embedding, inputs: Tensor, projections: Projections) -> Tensor:
        tokens = inputs.reshape(len(inputs), -1)
        rows = projections.inputs[0][tokens]
        if layer.padding_idx is not None:
            rows = rows * (tokens != layer.padding_idx).unsqueeze(2)
        return features_first(rows)

    def matrix(self, layer: nn.Embedding, gradients: Mapping[str, Tensor]) -> Tensor:  # noqa: ARG002 (the interface)
        return gradients["weight"].T.unsqueeze(0)


class ScaleRule(LayerRule):
    """The bare weight of a root mean square norm of one's own, y = w ∘ x̂ or (1 + w) ∘ x̂: a column Σ_t s_t ∘ x̂_t.

    Nothing says that a layer computes this, so whoever takes the rule compares a gradient with autograd's.
    """

    sequential = True

    def could_measure(self, layer: nn.Module) -> bool:
        """Whether the layer looks like one: a norm with a weight, an ε, and nothing else."""
        parameters = dict(layer.named_parameters())
        return (
            set(parameters) == {"weight"}
            and parameters["weight"].ndim == 1
            and type(layer).__name__.endswith("Norm")
            and self._epsilon(layer) is not None
        )

    def shape(self, layer: Any) -> GradientShape:
        return GradientShape(1, layer.weight.numel(), 1)

    def keep(self, layer: Any, inputs: Tensor, projections: Projections) -> Tensor:  # noqa: ARG002 (the interface)
        return functional.rms_norm(inputs, list(layer.weight.shape), eps=self._epsilon(layer))

    def gradient(self, layer: Any, kept: Tensor, output_gradients: Tensor, projections: Projections) -> Tensor:
        sums = (output_gradients * kept).reshape(len(kept), -1, layer.weight.numel()).sum(1)
        return torch.einsum("nd,dp,q->npq", sums, projections.outputs[0], projections.inputs[0, 0]).flatten(1)

    @staticmethod
    def _epsilon(layer: nn.Module) -> float | None:
        found = (getattr(layer, name, None) for name in ("variance_epsilon", "eps", "epsilon"))
        return next((value for value in found if isinstance(value, float)), None)


def _affine_positions(inputs: Tensor, projection: Tensor, features: int) -> Tensor:
    """Inputs (batch, …, features) times the projection, plus its last row where a bias stands for an input of 1."""
    rows = inputs.reshape(-1, features)
    biased = len(projection) > features
    projected = torch.addmm(projection[features], rows, projection[:features]) if biased else rows @ projection
    return features_first(projected.reshape(len(inputs), -1, projection.shape[1]))
