"""One forward pass that remembers what projected per-example gradients need, and backward passes that give them.

No weight gradient is ever computed: all weights are frozen, the graph starts at the output of the first tracked layer,
and a hook reads the gradient at each tracked layer's output (METHODS: φ).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from gradtrail.attribution.adapters.base import Batch
from gradtrail.attribution.gradients.fallback import Fallback, WholeGroup
from gradtrail.attribution.gradients.parameter_uses import ParameterUses
from gradtrail.attribution.gradients.routes import ROWS, CallLayout, Routes, positions_of
from gradtrail.attribution.gradients.tracked_model import LayerUse, TrackedModel
from gradtrail.attribution.gradients.weight_gradients import in_graph
from gradtrail.attribution.layers.attention import InProjection, taken_apart
from gradtrail.attribution.layers.forward_overrides import override_forward, use_faster_products
from gradtrail.attribution.layers.registry import LayerRule, Projections
from gradtrail.attribution.numerics.products import faster_products, frozen_linear
from gradtrail.errors import ModelError
from gradtrail.nouns import Example

__all__ = ["HookedForward", "UnfitError"]


class UnfitError(ModelError):
    """A layer that its rule cannot measure in this batch: the group at `place` of the plan."""

    def __init__(self, place: int, what: str) -> None:
        super().__init__(
            what,
            "Its weight is unused, used without calling the layer, or for all examples together: allow the fallback, "
            "or index with --fallback-for and the layer's name, which measures it by autograd, or with --exclude, "
            "which reports it as uncovered; an adapter says so by fallback_for and exclude.",
        )
        self.place = place


class HookedForward:
    """The outputs of one batch, and feature vectors for any per-example quantity computed from them."""

    def __init__(self, tracked: TrackedModel, examples: Sequence[Example], routes: Routes) -> None:
        self.outputs: Tensor
        self.batch: Batch
        self.kept_bytes = 0
        self.uses: ParameterUses | None = None
        self.masked = True
        self.judging = False
        self._examples = examples
        self._routes = routes
        self._positions: frozenset[int] = frozenset()
        self._tracked = tracked
        self._model = tracked.model
        self._adapter = tracked.adapter
        self._plan = tracked.plan
        self._projections = tracked.projections
        self._fallback = routes.fallback
        self._run = tracked.run
        self._device_type = torch.device(tracked.device).type
        self._size = len(examples)
        self._listening = True
        self._called: set[str] = set()
        self._starts: list[Tensor] = []
        self._sums: list[Tensor | None] = [None] * len(self._plan.groups)
        self._cotangents: Tensor | None = None
        self._padding: Tensor | None = None
        # Calls without a graph, which reentrant checkpointing repeats with one when backward passes.
        self._owed: Counter[str] = Counter()
        self._owed_by_inputs = False

    def run(self, batch: Batch) -> None:
        """Run the model forward.

        Raises:
            UnfitError: when a layer is not called, or not as its route says.
        """
        self.batch = batch
        self._positions = positions_of(batch, self._routes.batch)
        mask = self._adapter.position_mask(batch) if self.masked else None
        self._padding = None if mask is None else ~mask.bool()
        # A model may overwrite its inputs, which the fallback needs once more.
        outputs = self._outputs(batch if self._fallback is None else batch.with_each(torch.clone))
        if self._owed_by_inputs:
            # Reentrant checkpointing gives no gradients unless its inputs are in the graph.
            self._starts, self._owed = [], Counter()
            outputs = self._outputs(Batch(in_graph(batch.inputs), batch.targets))
        self._refuse_uncalled()
        self._refuse_unknown_uses()
        if self._fallback is not None:
            outputs = self._in_graph(outputs)
            outputs.register_hook(self._keep_cotangents)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self.outputs = outputs

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
        owed, starts = self._owed.copy(), len(self._starts)
        # Without naming inputs, which reentrant checkpointing does not allow: only `_starts` are leaves of the graph.
        torch.autograd.backward(values.sum(), retain_graph=keep_graph)
        for start in self._starts:
            start.grad = None
        # Those of segments that a checkpoint ran again belong to this pass alone.
        del self._starts[starts:]
        self._refuse_owed()
        self._owed = owed
        if self._fallback is not None:
            self._add_fallback(self._fallback)
        template = self._projections[0].inputs
        columns = [
            template.new_zeros(self._size, group.dimension) if total is None else total
            for group, total in zip(self._plan.groups, self._sums, strict=True)
        ]
        return torch.cat(columns, dim=1)

    def release(self) -> None:
        """Let go of the graph: its hooks refer back to this object, a cycle that only this breaks."""
        self._starts = []
        self._sums = []
        self._cotangents = None
        self.uses = None
        if hasattr(self, "outputs"):
            del self.outputs

    def attach(self, stack: ExitStack) -> None:
        """Hook every planned layer and take attention apart; all of it is undone when `stack` closes."""
        for use in self._tracked.uses:
            if use.place in self._routes.by_autograd:
                continue
            # First in line, so that the user's own hooks see and change what leaves the layer, not what we read.
            handle = use.layer.register_forward_hook(self._forward_hook(use), prepend=True, with_kwargs=True)
            stack.callback(handle.remove)
        for layer, planned in self._tracked.attention.values():
            packed = None if planned is None or planned.place in self._routes.by_autograd else planned
            override_forward(layer, taken_apart(layer, self._in_projection(layer, packed)), stack)
        # The fallback differentiates by the weights, in ways that know torch's own layers only.
        use_faster_products(self._tracked.affine, stack, lambda: self._listening)

    def _forward_hook(self, use: LayerUse) -> Callable[..., Tensor | None]:
        def remember(
            layer: nn.Module,  # noqa: ARG001 (torch passes it)
            args: tuple[Any, ...],
            kwargs: Mapping[str, Any],
            output: Tensor,
        ) -> Tensor | None:
            if not self._listening:
                return None
            return self._remember(use, args[0] if args else kwargs["input"], output)

        return remember

    def _in_projection(self, layer: nn.MultiheadAttention, use: LayerUse | None) -> InProjection:
        def project(inputs: Tensor, rows: slice) -> Tensor:
            bias = layer.in_proj_bias
            linear = frozen_linear if self._listening else functional.linear
            output = linear(inputs, layer.in_proj_weight[rows], None if bias is None else bias[rows])
            if use is None or not self._listening:
                return output
            whole = use.projections
            own = Projections(whole.outputs[:, rows], whole.inputs, whole.exact)
            return self._remember(replace(use, projections=own), inputs, output)

        return project

    def _remember(self, use: LayerUse, inputs: Tensor, output: Tensor) -> Tensor:
        name, layout = use.name, self._routes.layouts.get(use.name, ROWS)
        self._called.add(name)
        self._refuse_unfit(use, layout, inputs, output)
        if not torch.is_grad_enabled():
            self._owed_by_inputs |= not self._starts
            self._owed[name] += 1
            return output
        self._owed[name] -= 1 if self._owed[name] else 0
        inputs = layout.by_example(_as_working_type(inputs.detach(), use.projections), self._size)
        seen = self._without_padding(use.rule, inputs)
        # The model may run in lower precision; what is kept of it does not.
        lowered = torch.is_autocast_enabled(self._device_type)
        with torch.autocast(self._device_type, enabled=False) if lowered else nullcontext(), faster_products():
            kept = use.rule.keep(use.layer, seen, use.projections)
        self.kept_bytes += kept.untyped_storage().nbytes()
        # What all examples share becomes theirs one by one, so that each has a gradient of its own.
        output = self._in_graph(layout.expanded(output, self._size) if layout.is_shared else output)
        if output.requires_grad:
            output.register_hook(partial(self._add, use, layout, kept))  # type: ignore[no-untyped-call]  # torch leaves it untyped
        return output

    def _in_graph(self, output: Tensor) -> Tensor:
        """The output as part of the graph, such that a later in-place operation cannot come between it and its hook."""
        if not output.requires_grad:
            output = output.detach().requires_grad_()
            self._starts.append(output)
        elif not output._is_view():
            return output
        # A leaf must not be changed in place, and of a view that is, autograd rewrites the history, past the hook. The
        # same memory without either name keeps its own history, without the cost of a copy.
        unnamed: Tensor = torch.ops.aten._unsafe_view(output, output.shape)
        return unnamed

    def _add(self, use: LayerUse, layout: CallLayout, kept: Tensor, gradient: Tensor) -> None:
        gradient = _as_working_type(gradient.detach(), use.projections)
        seen = self._without_padding(
            use.rule, gradient if layout.is_shared else layout.by_example(gradient, self._size)
        )
        with faster_products():
            part = use.rule.gradient(use.layer, kept, seen, use.projections)
        if use.turned:
            blocks = use.projections.outputs.shape[0] if use.projections.exact else 1
            widths = (use.projections.outputs.shape[2], use.projections.inputs.shape[2])
            part = part.reshape(len(part), blocks, *widths).transpose(2, 3).flatten(1)
        self._add_part(use.place, part)

    def _without_padding(self, rule: LayerRule, values: Tensor) -> Tensor:
        padding = self._padding
        if padding is None or not rule.sequential or not values.is_floating_point():
            return values
        if values.shape[: padding.ndim] != padding.shape or values.ndim == padding.ndim:
            return values
        return values.masked_fill(padding.reshape(*padding.shape, *[1] * (values.ndim - padding.ndim)), 0)

    def _parameter_uses(self) -> ParameterUses | None:
        if not self._routes.by_use:
            return None
        every = dict(self._model.named_parameters(remove_duplicate=False))
        groups = [self._tracked.whole_group(place) for place in sorted(self._routes.by_use)]
        named: dict[Tensor, WholeGroup] = {every[each.group.parameters[0]]: each for each in groups}
        return ParameterUses(named, self._size, self._starts.append, self._add_part)

    def _add_part(self, place: int, part: Tensor) -> None:
        total = self._sums[place]
        self._sums[place] = part if total is None else total + part

    def _keep_cotangents(self, gradient: Tensor) -> None:
        self._cotangents = gradient.detach()

    def _add_fallback(self, fallback: Fallback) -> None:
        if self._cotangents is None or len(self._cotangents) != self._size:
            raise ModelError(
                f"The outputs do not have one row for each of the {self._size} examples, or the losses do not depend "
                "on them.",
                "Return outputs whose first dimension is the example, and compute losses from them; or leave "
                "parameters without a layer rule out with FeatureSettings.fallback=False.",
            )
        self._listening = False
        try:
            parts = fallback.vectors(self._examples, self.batch, self._cotangents)
        finally:
            self._listening = True
        for each, part in zip(fallback.groups, parts, strict=True):
            self._sums[each.place] = part

    def _refuse_uncalled(self) -> None:
        """Every layer must have run: one that is bypassed would count as covered with zero gradients."""
        for use in self._tracked.every_use:
            if use.name not in self._called and use.place not in self._routes.by_autograd:
                raise UnfitError(use.place, f"Layer {use.name} was never called in the forward pass.")

    def _outputs(self, batch: Batch) -> Tensor:
        self.uses = self._parameter_uses()
        with self.uses or nullcontext():
            outputs = self._run(self._model, batch)
        self.kept_bytes += 0 if self.uses is None else self.uses.kept_bytes
        return outputs

    @property
    def unknown_uses(self) -> set[int]:
        """The places of parameters that met the examples in a way that is not known, or not at all."""
        return set() if self.uses is None else self.uses.unfit | (self._routes.by_use - self.uses.called)

    def _refuse_unknown_uses(self) -> None:
        if self.unknown_uses and not self.judging:
            place = min(self.unknown_uses)
            raise UnfitError(place, f"{self._plan.groups[place].name} is used in another way than before.")

    def _refuse_owed(self) -> None:
        owed = sorted(name for name, calls in self._owed.items() if calls > 0)
        if owed:
            raise ModelError(
                f"Layer {owed[0]} ran without a graph, so that its gradient is lost.",
                "Look for torch.no_grad around it in the model, or leave it out with FeatureSettings.exclude.",
            )

    def _refuse_unfit(self, use: LayerUse, layout: CallLayout, inputs: Tensor, output: Tensor) -> None:
        for role, value in (("input", inputs), ("output", output)):
            if not layout.fits(value, self._size, self._positions):
                raise UnfitError(
                    use.place,
                    f"The {role} of layer {use.name} has shape {tuple(value.shape)} in a batch of {self._size} "
                    "examples: its first dimension is not the example.",
                )


def _as_working_type(values: Tensor, projections: Projections) -> Tensor:
    if values.layout != torch.strided:
        values = values.to_dense()
    return values.to(projections.inputs.dtype) if values.is_floating_point() else values
