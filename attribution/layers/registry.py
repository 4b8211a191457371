"""What a layer rule is, and the registry that finds the rule for a layer.

A rule sees a layer's gradient for one example as `blocks` matrices of `rows` × `columns` (outputs × inputs, the bias as
a last input that is always 1), the blocks of a block-diagonal matrix. It never forms it: it projects inputs when the
layer runs forward, output gradients when backward passes, and multiplies the small results (arXiv 2405.13954, LoGra).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from gradtrail.registry import Registry


@dataclass(frozen=True)
class GradientShape:
    """Shape of a layer's gradient: `blocks` matrices of `rows` × `columns`."""

    blocks: int
    rows: int
    columns: int

    @property
    def size(self) -> int:
        """Number of entries: the layer's parameter count, and the zeros a rule needs to arrange it so."""
        return self.blocks * self.rows * self.columns

    @property
    def transposed(self) -> GradientShape:
        """Rows and columns exchanged."""
        return GradientShape(self.blocks, self.columns, self.rows)


@dataclass(frozen=True)
class Projections:
    """Both sides of one group: outputs (blocks, rows, p_out) and inputs (blocks, columns, p_in).

    `exact` says that both are identities and that blocks are kept apart; otherwise blocks are summed, which is the
    two-sided projection of the block-diagonal matrix.
    """

    outputs: Tensor
    inputs: Tensor
    exact: bool

    @property
    def exchanged(self) -> Projections:
        """Those of the transposed gradient."""
        return Projections(self.inputs, self.outputs, self.exact)


class LayerRule(ABC):
    """The gradient of one layer type as two pure steps. Tensors that arrive have the batch as their first dimension.

    `transposes` says that the rows are the second dimension of the weight: where two layers share one weight, the
    gradient of one of them may have to be turned. `sequential` says that inputs and outputs are (batch, positions, …),
    so that an adapter's position mask tells their padding.
    """

    transposes: ClassVar[bool] = False
    sequential: ClassVar[bool] = False

    @abstractmethod
    def shape(self, layer: Any) -> GradientShape:
        """Shape of the gradient of all parameters of `layer` together."""

    def parameters(self, layer: nn.Module) -> dict[str, nn.Parameter]:
        """The parameters the rule speaks for, by their name in the layer."""
        return dict(layer.named_parameters(recurse=False))

    def owns(self, layer: nn.Module) -> bool:
        """Whether the layer has a weight, and no parameter beside it and a bias."""
        names = set(dict(layer.named_parameters()))
        return "weight" in names and names <= {"weight", "bias"}

    def supports(self, layer: Any) -> bool:  # noqa: ARG002 (rules that depend on the layer's options override this)
        """Whether the rule is exact for this layer's options; otherwise its parameters are reported as uncovered."""
        return True

    @abstractmethod
    def keep(self, layer: Any, inputs: Tensor, projections: Projections) -> Tensor:
        """What the backward step needs of the inputs, in memory of its own: the model may overwrite its inputs."""

    @abstractmethod
    def gradient(self, layer: Any, kept: Tensor, output_gradients: Tensor, projections: Projections) -> Tensor:
        """Projected gradients (batch, p_out · p_in), or (batch, blocks · rows · columns) when exact."""

    def affine(self, layer: Any) -> tuple[Tensor, Tensor | None] | None:  # noqa: ARG002 (linear layers override this)
        """Weight (outputs, inputs) and bias of a layer that multiplies by one, adds the other, and does no more."""
        return None

    def matrix(self, layer: Any, gradients: Mapping[str, Tensor]) -> Tensor:
        """Parameter gradients by name ("weight", "bias") in the rule's own arrangement: (blocks, rows, columns)."""
        shape = self.shape(layer)
        parts = [
            gradients[name].reshape(shape.blocks, shape.rows, -1) for name in ("weight", "bias") if name in gradients
        ]
        return torch.cat(parts, dim=2)


_RULES: Registry[type[nn.Module] | str, LayerRule] = Registry(
    "gradtrail.attribution.layers.rules", "gradtrail.attribution.layers.norms"
)


def layer_rule(*layer_types: type[nn.Module] | str) -> Callable[[type[LayerRule]], type[LayerRule]]:
    """Register a rule for layer types; a type of a library that may be absent is given as "module.Class"."""

    def register(rule_type: type[LayerRule]) -> type[LayerRule]:
        for layer_type in layer_types:
            _RULES.add(layer_type, rule_type())
        return rule_type

    return register


def find_rule(layer: nn.Module) -> LayerRule | None:
    """The rule for `layer`, or None when no rule is known to be exact for it.

    A subclass counts only while it computes what its registered base computes: it must not replace `forward`, add
    parameters, or derive its weight from others (weight norm, parametrisations).
    """
    if "forward" in vars(layer):
        return None
    for base in type(layer).__mro__:
        rule = _RULES.get(base) or _RULES.get(f"{base.__module__}.{base.__qualname__}")
        if rule is not None:
            same_forward = type(layer).forward is base.forward  # type: ignore[attr-defined]  # a base with a rule is a module
            return rule if same_forward and rule.owns(layer) and rule.supports(layer) else None
    return None


class OuterProductRule(LayerRule):
    """Layers whose gradient is Σ_t s_t a_tᵀ over positions t; `keep` returns (batch, blocks, p_in, positions)."""

    @abstractmethod
    def output_blocks(self, layer: Any, output_gradients: Tensor) -> Tensor:
        """Output gradients as (batch, blocks, rows, positions)."""

    def gradient(self, layer: Any, kept: Tensor, output_gradients: Tensor, projections: Projections) -> Tensor:
        blocks = self.output_blocks(layer, output_gradients)
        projected = projections.outputs.transpose(1, 2) @ blocks
        summed = "nbot,nbit->nboi" if projections.exact else "nbot,nbit->noi"
        return torch.einsum(summed, projected, kept).flatten(1)


class FeaturesLastRule(OuterProductRule):
    """Those of one block whose features are the last dimension of inputs and outputs.

    Output gradients are multiplied where they lie: for token sequences this product is most of the cost of an index.
    """

    def output_blocks(self, layer: Any, output_gradients: Tensor) -> Tensor:  # noqa: ARG002 (the interface)
        return features_first(output_gradients)

    def gradient(self, layer: Any, kept: Tensor, output_gradients: Tensor, projections: Projections) -> Tensor:  # noqa: ARG002 (the interface)
        outputs = projections.outputs[0]
        projected = output_gradients.reshape(-1, len(outputs)) @ outputs
        by_example = projected.reshape(len(kept), -1, outputs.shape[1])
        inputs = kept[:, 0].transpose(1, 2)
        # One position gives an outer product, which broadcasting forms ten times faster than a batched product.
        single = inputs.shape[1] == 1
        summed = by_example.transpose(1, 2) * inputs if single else torch.bmm(by_example.transpose(1, 2), inputs)
        return summed.flatten(1)


def features_first(values: Tensor) -> Tensor:
    """(batch, …, features) as (batch, 1, features, positions)."""
    return values.reshape(len(values), -1, values.shape[-1]).transpose(1, 2).unsqueeze(1)


def factored_rule(model: nn.Module, modules: Sequence[str]) -> OuterProductRule | None:
    """The rule of a group's layers when a hook sees every a and s of G = Σ_t s_t a_tᵀ: it has Kronecker factors.

    None for parameters without a rule, for norms, and for layers that share a weight the other way round.
    """
    layers = [model.get_submodule(name) for name in modules]
    rules = [find_rule(layer) for layer in layers]
    if not rules:
        return None
    if len({rule.transposes for rule in rules if rule is not None}) > 1:
        return None
    return rules[0] if isinstance(rules[0], OuterProductRule) else None
