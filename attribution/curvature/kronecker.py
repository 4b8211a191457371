"""Kronecker factors A = E[a aᵀ] and S = E[s sᵀ] of every linear or convolutional layer, in one pass over the data.

a is a layer's input (with the 1 of its bias), s the gradient at its output; their products are summed over positions
that are not padding. The packed projection of attention counts as one layer, of which each input sees its own rows. The
leading eigenvectors are the projection of kind `eigen` (arXiv 2308.03296 for full rank, 2405.13954 for truncation).
Layers of other kinds, and sides wider than `LARGEST_FACTOR`, are projected as without a basis.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from gradtrail.attribution.adapters.base import (
    Batch,
    ModelAdapter,
    TrainingData,
    at_least_float32,
    iterate_examples,
    measured_outputs,
)
from gradtrail.attribution.curvature.vectors import curvature_kind, output_factors, refuse_non_finite, require_curvature
from gradtrail.attribution.features.plan import FeaturePlan, Group
from gradtrail.attribution.gradients.eval_mode import frozen_in_eval
from gradtrail.attribution.layers.attention import InProjection, taken_apart
from gradtrail.attribution.layers.forward_overrides import fast_affine_layers, override_forward, use_faster_products
from gradtrail.attribution.layers.registry import OuterProductRule, Projections, factored_rule
from gradtrail.attribution.numerics.products import faster_products, frozen_linear
from gradtrail.attribution.projection.eigen import EigenBasis, leading_basis, side_key, whole_basis
from gradtrail.attribution.projection.random import ProjectionSide
from gradtrail.errors import DataError, ModelError
from gradtrail.nouns import Example

LARGEST_FACTOR = 4096
"""Widest side that gets an eigenbasis: its factor is a matrix of this size squared, in float64."""
_EVERY_ROW = slice(None)


def fit_eigen_basis(
    adapter: ModelAdapter,
    model: nn.Module,
    examples: Iterable[Example] | TrainingData,
    plan: FeaturePlan,
    *,
    kind: str,
    seed: int = 0,
    batch_size: int = 64,
    device: str | torch.device = "cpu",
    on_non_finite: Callable[[str, str], None] | None = None,
) -> EigenBasis:
    """The eigenbasis of `plan`'s groups, from one pass; `kind` says which targets the gradients s are of.

    Use it as `dataclasses.replace(plan, basis=basis)`. With `on_non_finite(example_id, cause)` an example that is not
    finite is reported and left out; without it, it raises.

    Raises:
        UsageError: for an unknown kind.
        ModelError: when the adapter does not support the kind, or no layer has Kronecker factors.
        DataError: without examples, or when a value is not finite, naming the examples.
    """
    chosen = curvature_kind(kind)
    require_curvature(adapter, chosen)
    factors = {
        group.name: _Factors(group, rule)
        for group in plan.groups
        if (rule := factored_rule(model, group.modules)) is not None
    }
    remaining = iterate_examples(examples)
    generator = torch.Generator().manual_seed(seed)
    count = 0
    while batch := list(islice(remaining, batch_size)):
        pieces = [batch]
        while pieces:
            piece = pieces.pop()
            try:
                _accumulate(adapter, model, factors, piece, kind, generator, device)
                count += len(piece)
            except DataError as error:
                if on_non_finite is None:
                    raise
                if len(piece) == 1:
                    on_non_finite(piece[0].example_id, str(error))
                else:
                    pieces += [[example] for example in piece]
    if count == 0:
        raise DataError("Kronecker factors without examples.", "Pass the training examples of the index.")
    matrices: dict[str, Tensor] = {}
    for group in plan.groups:
        if group.name in factors:
            matrices |= factors[group.name].bases(plan.settings.seed)
    if not matrices:
        raise ModelError(
            f"No layer of {type(model).__name__} has Kronecker factors of at most {LARGEST_FACTOR} rows.",
            "Index with random projection.",
        )
    return EigenBasis(chosen, matrices)


class _Factors:
    """Both sums of one group, (blocks, width, width) float64; None for a side that is too wide.

    What a batch adds waits until the whole batch is known to be finite.
    """

    def __init__(self, group: Group, rule: OuterProductRule) -> None:
        self.group = group
        self._rule = rule
        self._outputs = _zeros(group.blocks, group.d_out)
        self._inputs = _zeros(group.blocks, group.d_in)
        self._waiting: list[tuple[Tensor, Tensor]] = []
        self._padding: Tensor | None = None
        self._starts: list[Tensor] = []

    def attach(self, model: nn.Module, stack: ExitStack, starts: list[Tensor], padding: Tensor | None) -> None:
        """Hook every use of the group's parameters; the hooks come off when `stack` closes.

        `padding` (batch, positions) is true where nothing counts; attention is hooked by `project`.
        """
        self._padding, self._starts = padding, starts
        for name in self.group.modules:
            layer = model.get_submodule(name)
            if not isinstance(layer, nn.MultiheadAttention):
                handle = layer.register_forward_hook(self._remember, prepend=True, with_kwargs=True)
                stack.callback(handle.remove)

    def see(self, layer: nn.Module, inputs: Tensor, output: Tensor, rows: slice = _EVERY_ROW) -> Tensor:
        """Take in one use of the layer, of those `rows` of its weight; its output, as part of the graph."""
        self._add_inputs(layer, inputs.detach())
        if not output.requires_grad:
            output = output.detach().requires_grad_()
            self._starts.append(output)
        output = output.clone()
        output.register_hook(lambda gradient: self._add_outputs(layer, gradient.detach(), rows))  # type: ignore[no-untyped-call]  # torch leaves it untyped
        return output

    def is_finite(self) -> bool:
        """Whether all that waits is finite."""
        return all(bool(torch.isfinite(part).all()) for _, part in self._waiting)

    def take(self) -> None:
        """Add what waits."""
        for total, part in self._waiting:
            total.add_(part.cpu().double())
        self._waiting = []

    def forget(self) -> None:
        """Drop what waits."""
        self._waiting = []

    def bases(self, seed: int) -> dict[str, Tensor]:
        """Projection matrices of the sides that have a factor; a layer that no gradient reached has none."""
        found: dict[str, Tensor] = {}
        name = self.group.name
        sides: tuple[tuple[ProjectionSide, Tensor | None, int], ...] = (
            ("outputs", self._outputs, self.group.p_out),
            ("inputs", self._inputs, self.group.p_in),
        )
        for side, factor, columns in sides:
            if factor is None or not factor.any():
                continue
            found[side_key(name, side)] = (
                whole_basis(factor)
                if self.group.exact
                else leading_basis(factor, columns, seed=seed, group=name, side=side)
            )
        return found

    def _remember(self, layer: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Tensor) -> Tensor:
        return self.see(layer, args[0] if args else kwargs["input"], output)

    def _add_inputs(self, layer: nn.Module, inputs: Tensor) -> None:
        if self._inputs is None:
            return
        values = at_least_float32(inputs)
        dtype = values.dtype if values.is_floating_point() else torch.float32
        identity = torch.eye(self.group.d_in, dtype=dtype, device=values.device)
        whole = identity.expand(self.group.blocks, -1, -1)
        kept = self._rule.keep(layer, values, Projections(outputs=whole[:, :0], inputs=whole, exact=True))
        kept = self._without_padding(kept, inputs.shape[:-1] if inputs.is_floating_point() else inputs.shape)
        with faster_products():
            self._waiting.append((self._inputs, torch.einsum("nbit,nbjt->bij", kept, kept)))

    def _add_outputs(self, layer: nn.Module, gradients: Tensor, rows: slice) -> None:
        if self._outputs is not None:
            blocks = self._rule.output_blocks(layer, at_least_float32(gradients))
            blocks = self._without_padding(blocks, gradients.shape[:-1])
            with faster_products():
                self._waiting.append((self._outputs[:, rows, rows], torch.einsum("nbot,nbpt->bop", blocks, blocks)))

    def _without_padding(self, values: Tensor, places: torch.Size) -> Tensor:
        """Values (batch, blocks, width, positions) with 0 at padding; `places` (batch, …) are the positions unrolled.

        The 1 of a bias is 0 there too.
        """
        padding = self._padding
        if padding is None or not self._rule.sequential or places[: padding.ndim] != padding.shape:
            return values
        hidden = padding.reshape(*padding.shape, *[1] * (len(places) - padding.ndim)).expand(places)
        return values.masked_fill(hidden.reshape(len(values), 1, 1, -1), 0)


def _take_attention_apart(model: nn.Module, factors: Mapping[str, _Factors], stack: ExitStack) -> None:
    """Show each packed projection to its group, and call each projection out as a layer, until `stack` closes."""
    seen_by = {name: each for each in factors.values() for name in each.group.modules}
    for name, layer in model.named_modules():
        if isinstance(layer, nn.MultiheadAttention) and not {name, f"{name}.out_proj"}.isdisjoint(seen_by):
            override_forward(layer, taken_apart(layer, _in_projection(layer, seen_by.get(name))), stack)


def _in_projection(layer: nn.MultiheadAttention, factors: _Factors | None) -> InProjection:
    def project(inputs: Tensor, rows: slice) -> Tensor:
        bias = layer.in_proj_bias
        output = frozen_linear(inputs, layer.in_proj_weight[rows], None if bias is None else bias[rows])
        return output if factors is None else factors.see(layer, inputs, output, rows)

    return project


def _accumulate(
    adapter: ModelAdapter,
    model: nn.Module,
    factors: Mapping[str, _Factors],
    examples: list[Example],
    kind: str,
    generator: torch.Generator,
    device: str | torch.device,
) -> None:
    batch = adapter.collate(examples).to(device)
    starts: list[Tensor] = []
    with frozen_in_eval(model), ExitStack() as stack:
        mask = adapter.position_mask(batch)
        for each in factors.values():
            stack.callback(each.forget)
            each.attach(model, stack, starts, None if mask is None else ~mask.bool())
        _take_attention_apart(model, factors, stack)
        use_faster_products(fast_affine_layers(model, device), stack)
        outputs = measured_outputs(adapter, model, batch)
        refuse_non_finite("model's output", outputs.detach(), examples)
        quantities = _measured(adapter, outputs, batch, kind, generator)
        for position, values in enumerate(quantities):
            refuse_non_finite("loss", values.detach(), examples)
            torch.autograd.grad(values.sum(), starts, allow_unused=True, retain_graph=position + 1 < len(quantities))
        for name, each in factors.items():
            if not each.is_finite():
                raise DataError(
                    f"An input or gradient of layer {name} is not finite between {examples[0].example_id} and "
                    f"{examples[-1].example_id}.",
                    "Correct or remove these examples.",
                )
        for each in factors.values():
            each.take()


def _measured(
    adapter: ModelAdapter, outputs: Tensor, batch: Batch, kind: str, generator: torch.Generator
) -> list[Tensor]:
    """The quantities (batch,) whose gradients make S."""
    if kind == "empirical":
        return [adapter.losses(outputs, batch)]
    if kind == "fisher":
        return [adapter.losses(outputs, adapter.sample_targets(outputs, batch, generator))]
    return [(factor * outputs).flatten(1).sum(1) for factor in output_factors(adapter, outputs, batch)]


def _zeros(blocks: int, width: int) -> Tensor | None:
    return torch.zeros(blocks, width, width, dtype=torch.float64) if width <= LARGEST_FACTOR else None
