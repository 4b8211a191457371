"""The layer rules: what the gradient of each layer type is. To support a layer, read one and add one.

Every rule is exact: a test compares it with autograd, one example at a time (docs/attribution.md).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from gradtrail.attribution.layer_rules import (
    GradientShape,
    LayerRule,
    OuterProductRule,
    Projections,
    find_rule,
    layer_rule,
)

__all__ = ["find_rule"]


Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d
BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d


@layer_rule(nn.Linear)
class LinearRule(OuterProductRule):
    """y = W a + b over any number of middle dimensions."""

    def shape(self, layer: nn.Linear) -> GradientShape:
        return GradientShape(1, layer.out_features, layer.in_features + (layer.bias is not None))

    def keep(self, layer: nn.Linear, inputs: Tensor, projections: Projections) -> Tensor:
        return _affine_positions(inputs, projections.inputs[0], layer.in_features)

    def output_blocks(self, layer: nn.Linear, output_gradients: Tensor) -> Tensor:
        return _positions_last(output_gradients, layer.out_features)


@layer_rule(nn.Conv1d, nn.Conv2d, nn.Conv3d)
class ConvolutionRule(OuterProductRule):
    """The linear rule on patches, one block per channel group.

    A convolution whose kernels are the columns of the projection gives the projected patches without unfolding them.
    """

    def shape(self, layer: Convolution) -> GradientShape:
        patch = layer.weight[0].numel()
        return GradientShape(layer.groups, layer.out_channels // layer.groups, patch + (layer.bias is not None))

    def keep(self, layer: Convolution, inputs: Tensor, projections: Projections) -> Tensor:
        patch = layer.weight[0].numel()
        blocks, columns, width = projections.inputs.shape
        kernels = projections.inputs[:, :patch].transpose(1, 2).reshape(blocks * width, *layer.weight.shape[1:])
        ones = projections.inputs[:, patch].reshape(blocks * width) if columns > patch else None
        # The layer's own convolution with other kernels: it knows stride, dilation, groups and every padding mode.
        projected: Tensor = layer._conv_forward(inputs, kernels, ones)
        return projected.reshape(len(inputs), blocks, width, -1)

    def output_blocks(self, layer: Convolution, output_gradients: Tensor) -> Tensor:
        return output_gradients.reshape(len(output_gradients), layer.groups, layer.out_channels // layer.groups, -1)


@layer_rule("transformers.pytorch_utils.Conv1D")
class TransposedLinearRule(OuterProductRule):
    """The linear layer of GPT-2 in Hugging Face transformers, whose weight is (inputs, outputs)."""

    def shape(self, layer: Any) -> GradientShape:
        inputs, outputs = layer.weight.shape
        return GradientShape(1, outputs, inputs + (layer.bias is not None))

    def keep(self, layer: Any, inputs: Tensor, projections: Projections) -> Tensor:
        return _affine_positions(inputs, projections.inputs[0], layer.weight.shape[0])

    def output_blocks(self, layer: Any, output_gradients: Tensor) -> Tensor:
        return _positions_last(output_gradients, layer.weight.shape[1])

    def matrix(self, layer: Any, gradients: Mapping[str, Tensor]) -> Tensor:
        return super().matrix(layer, {**gradients, "weight": gradients["weight"].T})


@layer_rule(nn.Embedding)
class EmbeddingRule(OuterProductRule):
    """The linear rule on one-hot inputs: projecting one is looking up a row of the projection."""

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
        return rows.transpose(1, 2).unsqueeze(1)

    def output_blocks(self, layer: nn.Embedding, output_gradients: Tensor) -> Tensor:
        return _positions_last(output_gradients, layer.embedding_dim)

    def matrix(self, layer: nn.Embedding, gradients: Mapping[str, Tensor]) -> Tensor:  # noqa: ARG002 (the interface)
        return gradients["weight"].T.unsqueeze(0)


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

    def gradient(self, layer: Any, kept: Tensor, output_gradients: Tensor, projections: Projections) -> Tensor:
        gradients = self.by_channel(layer, output_gradients)
        rows = [(gradients * kept).sum(2), gradients.sum(2)][: self.shape(layer).rows]
        joined = torch.stack(rows, dim=1)
        return torch.einsum("nrc,rp,cq->npq", joined, projections.outputs[0], projections.inputs[0]).flatten(1)

    def matrix(self, layer: Any, gradients: Mapping[str, Tensor]) -> Tensor:  # noqa: ARG002 (the interface)
        present = [gradients[name].flatten() for name in ("weight", "bias") if name in gradients]
        return torch.stack(present).unsqueeze(0)


@layer_rule(nn.LayerNorm)
class LayerNormRule(NormRule):
    """Normalised over the last dimensions of each position."""

    def normalised(self, layer: nn.LayerNorm, inputs: Tensor) -> Tensor:
        return functional.layer_norm(inputs, layer.normalized_shape, eps=layer.eps)


@layer_rule(nn.RMSNorm)
class RootMeanSquareNormRule(NormRule):
    """Divided by the root mean square over the last dimensions of each position."""

    def normalised(self, layer: nn.RMSNorm, inputs: Tensor) -> Tensor:
        return functional.rms_norm(inputs, list(layer.normalized_shape), eps=layer.eps)


@layer_rule(nn.GroupNorm)
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


def _affine_positions(inputs: Tensor, projection: Tensor, features: int) -> Tensor:
    """Inputs (batch, …, features) times the projection, plus its last row where a bias stands for an input of 1."""
    projected = inputs.reshape(len(inputs), -1, features) @ projection[:features]
    if len(projection) > features:
        projected = projected + projection[features]
    return projected.transpose(1, 2).unsqueeze(1)


def _positions_last(values: Tensor, features: int) -> Tensor:
    """(batch, …, features) as (batch, 1, features, positions)."""
    return values.reshape(len(values), -1, features).transpose(1, 2).unsqueeze(1)
