"""Parameters without a layer rule: their per-example gradients from torch.func, projected on both sides all the same.

The gradient of a per-example value reaches the weights through the outputs only, so ∂value_n/∂outputs_n, which the
recorded backward pass gives, and one more forward and backward pass per example are all it takes (METHODS: φ).
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from gradtrail.attribution.adapters.base import Batch
from gradtrail.attribution.gradients.eval_mode import is_out_of_memory
from gradtrail.attribution.gradients.weight_gradients import Run, batch_rows, one_at_a_time, together
from gradtrail.attribution.layers.registry import Projections
from gradtrail.errors import AttributionWarning, ModelError

__all__ = ["GRADIENT_BYTES", "AttributionWarning", "Fallback"]

GRADIENT_BYTES = 1 << 28
"""How much whole per-example gradients may take at a time, where one alone is not larger."""


class Fallback:
    """Measures the parameters called `names`, examples together where torch can, else one at a time.

    `gradient_bytes` is what one example's whole gradient takes.
    """

    def __init__(self, run: Run, model: nn.Module, names: Sequence[str]) -> None:
        self.one_at_a_time = False
        self._run = run
        self._model = model
        self._names = list(names)
        every = dict(model.named_parameters())
        self.gradient_bytes = sum(every[name].numel() * every[name].element_size() for name in names)

    def vectors(self, batch: Batch, cotangents: Tensor, projections: Sequence[Projections]) -> list[Tensor]:
        """Projected gradients (batch, p_out · p_in) of each parameter, for ∂value/∂outputs (batch, …).

        Raises:
            ModelError: when the outputs do not have the example as their first dimension.
        """
        size, step = len(cotangents), self._chunk()
        chunks = []
        for start in range(0, size, step):
            rows = slice(start, min(start + step, size))
            part = batch if step >= size else batch_rows(batch, rows, size)
            gradients = self._gradients(part, cotangents[rows])
            chunks.append([project(*pair) for pair in zip(gradients, projections, strict=True)])
        return [torch.cat(parts) for parts in zip(*chunks, strict=True)]

    def _chunk(self) -> int:
        return max(1, GRADIENT_BYTES // max(self.gradient_bytes, 1))

    def _gradients(self, batch: Batch, cotangents: Tensor) -> list[Tensor]:
        if not self.one_at_a_time:
            try:
                with warnings.catch_warnings():
                    # Kernels that torch batches by a loop of its own are still no slower than ours.
                    warnings.filterwarnings("ignore", message="There is a performance drop")
                    return together(self._run, self._model, self._names, batch, cotangents)
            except RuntimeError as cause:
                if is_out_of_memory(cause):
                    raise
                self.one_at_a_time = True
                first_line = str(cause).strip().split("\n")[0]
                warnings.warn(
                    f"{', '.join(self._names[:5])}: measured one example at a time, because torch.func cannot follow "
                    f"the model ({first_line}). The pass takes a forward and a backward step per example.",
                    AttributionWarning,
                    stacklevel=2,
                )
        try:
            return one_at_a_time(self._run, self._model, self._names, batch, cotangents)
        except RuntimeError as cause:
            if is_out_of_memory(cause):
                raise
            raise ModelError(
                f"The parameters {', '.join(self._names[:5])} cannot be measured one example at a time: {cause}",
                "Keep the example as the first dimension of all inputs and outputs, or leave these parameters out "
                "with FeatureSettings.exclude or fallback=False.",
            ) from cause


def project(gradients: Tensor, projections: Projections) -> Tensor:
    """Whole gradients (batch, *parameter.shape) times both sides: (batch, p_out · p_in)."""
    outputs, inputs = projections.outputs[0], projections.inputs[0]
    matrices = gradients.to(outputs.dtype).reshape(len(gradients), outputs.shape[0], inputs.shape[0])
    if projections.exact:
        return matrices.flatten(1)
    return torch.einsum("nrc,rp,cq->npq", matrices, outputs, inputs).flatten(1)
