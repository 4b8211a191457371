"""Gradients with respect to weights, as autograd gives them: for parameters without a layer rule, and as an oracle."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from gradtrail.attribution.adapters.base import Batch
from gradtrail.attribution.adapters.collation import map_tensors
from gradtrail.attribution.adapters.layout import BatchLayout

Run = Callable[[nn.Module, Batch], Tensor]
"""One forward pass: the outputs (batch, …) of a model."""


class _Measured(nn.Module):
    """A model as its adapter runs it, so that torch can run it with other parameters."""

    def __init__(self, run: Run, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self._run = run

    def forward(self, batch: Batch) -> Tensor:
        return self._run(self.model, batch)


def together(
    run: Run, model: nn.Module, parameters: Sequence[str], batch: Batch, layout: BatchLayout, cotangents: Tensor
) -> list[Tensor]:
    """∇ ⟨outputs_n, cotangents_n⟩ of every example at once, by vmap: one (batch, *parameter.shape) for each parameter.

    Raises:
        RuntimeError: where torch.func cannot follow the model: fused kernels, saved-tensor hooks, control flow that
            depends on values.
    """
    varying: list[Tensor] = []
    places: list[int] = []

    def remember(tensor: Tensor, dimension: int) -> Tensor:
        # A copy, which the model may overwrite.
        varying.append(tensor.clone())
        places.append(dimension)
        return tensor

    layout.change(batch, remember)
    measured = _Measured(run, model)

    def product(weights: Mapping[str, Tensor], cotangent: Tensor, own: list[Tensor]) -> Tensor:
        parts = iter(own)
        lone = layout.change(batch, lambda _, dimension: next(parts).unsqueeze(dimension))
        outputs: Tensor = functional_call(measured, dict(weights), (lone,))
        return (outputs[0] * cotangent).sum()

    every = dict(model.named_parameters())
    weights = {f"model.{name}": every[name].detach() for name in parameters}
    gradients = vmap(grad(product), in_dims=(None, 0, places))(weights, cotangents, varying)
    return [_dense(gradients[f"model.{name}"].detach()) for name in parameters]


def one_at_a_time(
    run: Run, model: nn.Module, parameters: Sequence[str], alone: Iterable[Batch], cotangents: Tensor
) -> list[Tensor]:
    """The same as `together`, with a forward and a backward pass for each example: it works for every model.

    `alone` are the batches of each example by itself.
    """
    rows = []
    for own, cotangent in zip(alone, cotangents, strict=True):

        def product(outputs: Tensor, cotangent: Tensor = cotangent) -> Tensor:
            if outputs.shape != (1, *cotangent.shape):
                raise RuntimeError(
                    f"alone an example has outputs of shape {tuple(outputs.shape)}, in a batch {tuple(cotangent.shape)}"
                )
            return (outputs[0] * cotangent).sum()

        rows.append(weight_gradients(run, model, parameters, own, product))
    return [torch.stack(gradients) for gradients in zip(*rows, strict=True)]


def weight_gradients(
    run: Run,
    model: nn.Module,
    parameters: Sequence[str],
    batch: Batch,
    measure: Callable[[Tensor], Tensor],
) -> list[Tensor]:
    """∇ measure(outputs) by one backward pass to the model's own weights; their flags and `grad` are left as they were.

    The pass runs without naming its inputs, which reentrant checkpointing does not allow, and from inputs that are in
    the graph, without which it would lose gradients.
    """
    every = dict(model.named_parameters())
    wanted = [every[name] for name in parameters]
    before = [(parameter, parameter.requires_grad, parameter.grad) for parameter in wanted]
    try:
        for parameter in wanted:
            parameter.requires_grad_(True)
            parameter.grad = None
        value = measure(run(model, Batch(in_graph(batch.inputs), batch.targets)))
        if value.requires_grad:
            torch.autograd.backward(value)
        found = [parameter.grad for parameter in wanted]
    finally:
        for parameter, required, gradient in before:
            parameter.requires_grad_(required)
            parameter.grad = gradient
    return [
        torch.zeros_like(parameter) if gradient is None else _dense(gradient.detach())
        for parameter, gradient in zip(wanted, found, strict=True)
    ]


def in_graph(inputs: Any) -> Any:
    """`inputs` with every tensor of real numbers as part of a graph; a copy, which the model may overwrite."""

    def started(tensor: Tensor) -> Tensor:
        return tensor.detach().requires_grad_().clone() if tensor.is_floating_point() else tensor

    return map_tensors(started, inputs)


def _dense(gradient: Tensor) -> Tensor:
    return gradient if gradient.layout == torch.strided else gradient.to_dense()
