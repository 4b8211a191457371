"""What no layer rule can measure: per-example gradients from torch.func, projected on both sides all the same.

The gradient of a per-example value reaches the weights through the outputs only, so ∂value_n/∂outputs_n, which the
recorded backward pass gives, and one more forward and backward pass per example are all it takes (METHODS: φ).
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gradtrail.attribution.adapters.base import Batch, ModelAdapter
from gradtrail.attribution.adapters.faults import is_out_of_memory
from gradtrail.attribution.adapters.layout import BatchLayout
from gradtrail.attribution.features.plan import Group
from gradtrail.attribution.gradients.weight_gradients import Run, one_at_a_time, together
from gradtrail.attribution.layers.registry import LayerRule, Projections
from gradtrail.errors import AttributionWarning, ModelError
from gradtrail.nouns import Example

__all__ = ["GRADIENT_BYTES", "AttributionWarning", "Fallback", "WholeGroup"]

_NAMED, _NAMES_LENGTH = 5, 120
GRADIENT_BYTES = 1 << 28
"""How much whole per-example gradients may take at a time, where one alone is not larger."""


@dataclass(frozen=True)
class WholeGroup:
    """A group of a plan whose gradients are formed whole, and then projected; the `place` it has in the plan.

    `layer` and its `rule` say how the gradients are arranged; None for a parameter without one.
    """

    place: int
    group: Group
    projections: Projections
    layer: nn.Module | None = None
    rule: LayerRule | None = None

    def project(self, gradients: Sequence[Tensor]) -> Tensor:
        """Whole gradients of the group's parameters, each (batch, *shape): (batch, columns of the group)."""
        outputs, inputs, exact = self.projections.outputs, self.projections.inputs, self.projections.exact
        given = [gradient.to(outputs.dtype) for gradient in gradients]
        if self.rule is None or self.layer is None:
            matrices = given[0].reshape(-1, 1, self.group.d_out, self.group.d_in)
            if exact:
                return matrices.flatten(1)
        else:
            names = list(self.rule.parameters(self.layer))
            rows = (dict(zip(names, row, strict=True)) for row in zip(*given, strict=True))
            matrices = torch.stack([self.rule.matrix(self.layer, row) for row in rows])
        summed = "nbrc,brp,bcq->nbpq" if exact else "nbrc,brp,bcq->npq"
        return torch.einsum(summed, matrices, outputs, inputs).flatten(1)


def in_short(names: Sequence[str]) -> str:
    """Some of the names and how many more there are, so that what is said of them is not far away."""
    shown: list[str] = []
    for name in names[:_NAMED]:
        if shown and sum(map(len, shown)) + len(name) > _NAMES_LENGTH:
            break
        shown.append(name)
    more = len(names) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")


class Fallback:
    """Measures some groups of a model, examples together where torch can, else one at a time.

    `layout` says where the examples of a batch stand; without one, each is collated by itself. `gradient_bytes` is what
    one example's whole gradient takes.
    """

    def __init__(
        self,
        adapter: ModelAdapter,
        run: Run,
        model: nn.Module,
        groups: Sequence[WholeGroup],
        layout: BatchLayout | None,
        device: str | torch.device,
    ) -> None:
        self.one_at_a_time = False
        self.groups = tuple(groups)
        self.names = [name for each in groups for name in each.group.parameters]
        self._adapter = adapter
        self._run = run
        self._model = model
        self._device = device
        self._layout = layout
        every = dict(model.named_parameters())
        self.gradient_bytes = sum(every[name].numel() * every[name].element_size() for name in self.names)

    def vectors(self, examples: Sequence[Example], batch: Batch, cotangents: Tensor) -> list[Tensor]:
        """Projected gradients (batch, columns) of each group, for ∂value/∂outputs (batch, …); `batch` is of `examples`.

        Raises:
            ModelError: when the outputs do not have the example as their first dimension.
        """
        layout = self._layout if self._layout is not None and self._layout.fits(batch, len(examples)) else None
        step = max(1, GRADIENT_BYTES // max(self.gradient_bytes, 1))
        chunks = []
        for start in range(0, len(examples), step):
            places = torch.arange(start, min(start + step, len(examples)))
            whole = step >= len(examples) or layout is None
            part = batch if whole or layout is None else layout.rows(batch, places)
            own = examples[start : start + step]
            gradients = iter(self._gradients(own, part, layout, cotangents[start : start + step]))
            parts = [[next(gradients) for _ in each.group.parameters] for each in self.groups]
            chunks.append([each.project(own) for each, own in zip(self.groups, parts, strict=True)])
        return [torch.cat(parts) for parts in zip(*chunks, strict=True)]

    def _gradients(
        self, examples: Sequence[Example], batch: Batch, layout: BatchLayout | None, cotangents: Tensor
    ) -> list[Tensor]:
        if not self.one_at_a_time and layout is not None:
            try:
                with warnings.catch_warnings():
                    # Kernels that torch batches by a loop of its own are still no slower than ours.
                    warnings.filterwarnings("ignore", message="There is a performance drop")
                    return together(self._run, self._model, self.names, batch, layout, cotangents)
            except RuntimeError as cause:
                if is_out_of_memory(cause):
                    raise
                self.one_at_a_time = True
                words = " ".join(str(cause).split())
                warnings.warn(
                    f"{in_short(self.names)}: measured one example at a time, because torch.func cannot follow "
                    f"the model ({words}). The pass takes a forward and a backward step per example.",
                    AttributionWarning,
                    stacklevel=2,
                )
        if layout is None:
            alone = (self._adapter.collate([example]).to(self._device) for example in examples)
        else:
            alone = (layout.rows(batch, torch.tensor([row])) for row in range(len(examples)))
        try:
            return one_at_a_time(self._run, self._model, self.names, alone, cotangents)
        except RuntimeError as cause:
            if is_out_of_memory(cause):
                raise
            raise ModelError(
                f"The parameters {', '.join(self.names[:5])} cannot be measured one example at a time: {cause}",
                "Keep the example as the first dimension of all inputs and outputs, or leave these parameters out "
                "with FeatureSettings.exclude or fallback=False.",
            ) from cause
