"""One forward pass that remembers what projected per-example gradients need, and backward passes that give them.

No weight gradient is ever computed: all weights are frozen, the graph starts at the output of the first tracked layer,
and a hook reads the gradient at each tracked layer's output (METHODS: φ).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from gradtrail.attribution.adapters import Batch, ModelAdapter
from gradtrail.attribution.features import FeaturePlan
from gradtrail.attribution.layer_rules import LayerRule, Projections
from gradtrail.attribution.layers import find_rule
from gradtrail.attribution.working_mode import frozen_in_eval
from gradtrail.errors import ModelError
from gradtrail.nouns import Example


@dataclass(frozen=True)
class Instrument:
    """Everything that stays the same from batch to batch; `model` is on `device`."""

    adapter: ModelAdapter
    model: nn.Module
    plan: FeaturePlan
    projections: tuple[Projections, ...]
    device: str | torch.device


def build_instrument(
    adapter: ModelAdapter, model: nn.Module, plan: FeaturePlan, device: str | torch.device = "cpu"
) -> Instrument:
    """The projections are in the type the arithmetic runs in: the model's, but at least float32 and the plan's."""
    dtype = torch.promote_types(torch.float32, plan.dtype)
    for parameter in model.parameters():
        if parameter.is_floating_point():
            dtype = torch.promote_types(dtype, parameter.dtype)
    return Instrument(adapter, model, plan, plan.projections(dtype, device), device)


class Recording:
    """The outputs of one batch, and feature vectors for any per-example quantity computed from them."""

    def __init__(self, instrument: Instrument, size: int) -> None:
        self.outputs: Tensor
        self.batch: Batch
        self._model = instrument.model
        self._plan = instrument.plan
        self._projections = instrument.projections
        self._size = size
        self._starts: list[Tensor] = []
        self._called: set[str] = set()
        self._sums: list[Tensor | None] = [None] * len(self._plan.groups)

    def vectors(self, values: Tensor, *, keep_graph: bool = False) -> Tensor:
        """Projected gradients of each entry of `values` (batch,): (batch, dimension), in the working type.

        Raises:
            ModelError: when `values` has another shape or does not depend on the tracked layers.
        """
        if values.shape != (self._size,):
            raise ModelError(
                f"Losses have shape {tuple(values.shape)}, but the batch holds {self._size} examples.",
                "The adapter's losses must return one loss per example: sum over tokens or pixels, and use "
                'reduction="none" so that nothing is averaged over examples.',
            )
        if not values.requires_grad:
            raise ModelError(
                "The losses do not depend on any covered layer through the graph.",
                "Look for torch.no_grad or detach between the layers and the adapter's losses.",
            )
        self._sums = [None] * len(self._plan.groups)
        torch.autograd.grad(values.sum(), self._starts, allow_unused=True, retain_graph=keep_graph)
        template = self._projections[0].inputs
        columns = [
            template.new_zeros(self._size, group.dimension) if total is None else total
            for group, total in zip(self._plan.groups, self._sums, strict=True)
        ]
        return torch.cat(columns, dim=1)

    def refuse_uncalled(self) -> None:
        """Every planned layer must have run: one that is bypassed would count as covered with zero gradients."""
        for group in self._plan.groups:
            for module in group.modules:
                if module not in self._called:
                    raise ModelError(
                        f"Layer {module} was never called in the forward pass.",
                        "Its weight is unused, or used without calling the layer; leave it out with "
                        "FeatureSettings.exclude, and it is reported as uncovered.",
                    )

    def release(self) -> None:
        """Let go of the graph: its hooks refer back to this object, a cycle that only this breaks."""
        self._starts = []
        self._sums = []
        del self.outputs

    def attach(self, stack: ExitStack) -> None:
        """Hook every planned layer; the hooks come off when `stack` closes."""
        for position, group in enumerate(self._plan.groups):
            for name in group.modules:
                layer, rule = planned_layer(self._model, name)
                hook = self._forward_hook(position, name, rule)
                # First in line, so that the user's own hooks see and change what leaves the layer, not what we read.
                handle = layer.register_forward_hook(hook, prepend=True, with_kwargs=True)
                stack.callback(handle.remove)

    def _forward_hook(self, position: int, name: str, rule: LayerRule) -> Callable[..., Tensor]:
        projections = self._projections[position]

        def remember(layer: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Tensor) -> Tensor:
            inputs = args[0] if args else kwargs["input"]
            self._check_batch_dimension(name, inputs, output)
            self._called.add(name)
            kept = rule.keep(layer, _as_working_type(inputs.detach(), projections), projections)
            output = self._in_graph(output)
            if output.requires_grad:
                add = partial(self._add, position, layer, rule, kept)
                output.register_hook(add)  # type: ignore[no-untyped-call]  # torch leaves it untyped
            return output

        return remember

    def _in_graph(self, output: Tensor) -> Tensor:
        # A copy in either case: a later in-place operation then cannot touch what the hook is attached to.
        if output.requires_grad:
            return output.clone()
        start = output.detach().requires_grad_()
        self._starts.append(start)
        return start.clone()

    def _add(self, position: int, layer: nn.Module, rule: LayerRule, kept: Tensor, gradient: Tensor) -> None:
        projections = self._projections[position]
        part = rule.gradient(layer, kept, _as_working_type(gradient.detach(), projections), projections)
        total = self._sums[position]
        self._sums[position] = part if total is None else total + part

    def _check_batch_dimension(self, name: str, inputs: Tensor, output: Tensor) -> None:
        for role, value in (("input", inputs), ("output", output)):
            # Token ids may be one-dimensional; anything else has features beside the examples.
            least = 2 if value.is_floating_point() else 1
            if value.ndim < least or len(value) != self._size:
                raise ModelError(
                    f"The {role} of layer {name} has shape {tuple(value.shape)} in a batch of {self._size} examples: "
                    "its first dimension is not the example.",
                    "Keep the batch as the first dimension of every layer's input, or leave the layer out with "
                    "FeatureSettings.exclude.",
                )


@contextmanager
def recording(instrument: Instrument, examples: Sequence[Example]) -> Iterator[Recording]:
    """Run `examples` forward with hooks on; hooks, modes and flags are undone on leaving, also after an exception."""
    record = Recording(instrument, len(examples))
    record.batch = instrument.adapter.collate(examples).to(instrument.device)
    with frozen_in_eval(instrument.model), ExitStack() as stack:
        record.attach(stack)
        record.outputs = instrument.adapter.outputs(instrument.model, record.batch)
        stack.callback(record.release)
        record.refuse_uncalled()
        yield record


def planned_layer(model: nn.Module, name: str) -> tuple[nn.Module, LayerRule]:
    """The layer a plan names, and its rule; ModelError when `model` is not the one that was planned."""
    layer = dict(model.named_modules()).get(name)
    rule = find_rule(layer) if layer is not None else None
    if layer is None or rule is None:
        raise ModelError(
            f"The feature plan names layer {name!r}, which {type(model).__name__} does not have in that form.",
            "Plan the features of the very model that is measured.",
        )
    return layer, rule


def _as_working_type(values: Tensor, projections: Projections) -> Tensor:
    return values.to(projections.inputs.dtype) if values.is_floating_point() else values
