"""A model as attribution needs it, for a while: eval mode, frozen weights, gradients on; then as it was before."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from gradtrail.attribution.adapters.base import Batch, ModelAdapter, measured_outputs

_EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)


@contextmanager
def frozen_in_eval(model: nn.Module) -> Iterator[None]:
    """Freeze every parameter and switch to eval mode; restore each flag and each module's mode afterwards, always.

    Gradients of embeddings are dense meanwhile: `sparse=True` says how torch writes them down, not what they are.
    """
    modes = [(module, module.training) for module in model.modules()]
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    sparse = [module for module in model.modules() if isinstance(module, _EMBEDDINGS) and module.sparse]
    training = any(in_training for _, in_training in modes)
    fused_attention = torch.backends.mha.get_fastpath_enabled()
    try:
        # Once a batch for every module of a model is worth sparing where it is in eval mode already.
        if training:
            model.eval()
        # With frozen weights the fused encoder would run past its own layers, and past their hooks.
        torch.backends.mha.set_fastpath_enabled(False)
        for parameter, _ in flags:
            parameter.requires_grad_(False)
        for embedding in sparse:
            embedding.sparse = False
        with torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused_attention)
        for module, in_training in modes:
            if module.training != in_training:
                module.training = in_training
        for parameter, requires_grad in flags:
            parameter.requires_grad_(requires_grad)
        for embedding in sparse:
            embedding.sparse = True


def forward_pass(
    adapter: ModelAdapter, lower: torch.dtype | None, device: str | torch.device
) -> Callable[[nn.Module, Batch], Tensor]:
    """How the adapter runs a model: as it is, or by autocast in the `lower` precision; outputs in float32 at least."""
    if lower is None:
        return partial(measured_outputs, adapter)

    def run(model: nn.Module, batch: Batch) -> Tensor:
        with torch.autocast(torch.device(device).type, dtype=lower):
            return measured_outputs(adapter, model, batch)

    return run
