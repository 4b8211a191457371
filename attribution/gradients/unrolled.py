"""Recurrent layers step by step: LSTM, GRU and simple RNN as torch computes them, with their products in sight."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

Seen = Callable[[int, Tensor, Callable[[], Tensor]], Tensor]
"""Given the place of a weight (its bias stands two further on), the product's outputs (batch, positions, rows) and what
gives its inputs, returns the outputs to go on with."""

_ARGUMENTS, _SEQUENCES_NDIM = 9, 3
_STATES = {"lstm": 2, "gru": 1, "rnn_tanh": 1, "rnn_relu": 1}


def is_recurrent(function: Any) -> bool:
    """Whether it is one of torch's recurrent kernels."""
    return getattr(function, "__name__", "") in _STATES


def unrolled(kind: str, args: Sequence[Any], size: int, seen: Seen) -> tuple[Tensor, ...] | None:
    """What torch's kernel `kind` returns for the same arguments; None for those that are not known here.

    Those are packed sequences, projections of the state, dropout between layers, and inputs of another number of
    examples than `size`.
    """
    if len(args) != _ARGUMENTS or not isinstance(args[2], list | tuple):
        return None
    inputs, given, weights, has_biases, layers, dropout, training, bidirectional, batch_first = args
    directions, each = (2 if bidirectional else 1), (4 if has_biases else 2)
    if inputs.ndim != _SEQUENCES_NDIM or len(weights) != layers * directions * each or (training and dropout):
        return None
    hidden = inputs if batch_first else inputs.transpose(0, 1)
    if len(hidden) != size:
        return None
    states = list(given) if kind == "lstm" else [given]
    last: list[tuple[Tensor, ...]] = []
    for layer in range(layers):
        outputs = []
        for direction in range(directions):
            number = layer * directions + direction
            before = tuple(state[number] for state in states)
            steps, end = _direction(kind, hidden, weights, number * each, before, direction == 1, has_biases, seen)
            outputs.append(steps)
            last.append(end)
        hidden = torch.cat(outputs, dim=2)
    ends = tuple(torch.stack(parts) for parts in zip(*last, strict=True))
    return (hidden if batch_first else hidden.transpose(0, 1), *ends)


def _direction(
    kind: str,
    inputs: Tensor,
    weights: Sequence[Tensor],
    first: int,
    state: tuple[Tensor, ...],
    backwards: bool,
    has_biases: bool,
    seen: Seen,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """One layer in one direction: its states at every position, and the last."""
    of_inputs, of_states = weights[first], weights[first + 1]
    biases = weights[first + 2 : first + 4] if has_biases else (None, None)
    ordered = inputs.flip(1) if backwards else inputs
    products = seen(first, functional.linear(ordered, of_inputs, biases[0]), ordered.detach)
    befores: list[Tensor] = []
    # Zeros that the products of the states are added to: their gradients are those of all these products.
    nothing = seen(
        first + 1, products.new_zeros(*products.shape), lambda: torch.stack([each.detach() for each in befores], dim=1)
    )
    outputs = []
    for product, zeros in zip(products.unbind(1), nothing.unbind(1), strict=True):
        befores.append(state[0])
        state = _STEPS[kind](product, functional.linear(state[0], of_states, biases[1]) + zeros, state)
        outputs.append(state[0])
    steps = torch.stack(outputs, dim=1)
    return (steps.flip(1) if backwards else steps), state


def _lstm(product: Tensor, recurrent: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    enter, forget, new, leave = (product + recurrent).chunk(4, dim=1)
    cell = forget.sigmoid() * state[1] + enter.sigmoid() * new.tanh()
    return leave.sigmoid() * cell.tanh(), cell


def _gru(product: Tensor, recurrent: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    width = state[0].shape[1]
    reset, update = (product[:, : 2 * width] + recurrent[:, : 2 * width]).sigmoid().chunk(2, dim=1)
    new = (product[:, 2 * width :] + reset * recurrent[:, 2 * width :]).tanh()
    return (new + update * (state[0] - new),)


_STEPS: dict[str, Callable[[Tensor, Tensor, tuple[Tensor, ...]], tuple[Tensor, ...]]] = {
    "lstm": _lstm,
    "gru": _gru,
    "rnn_tanh": lambda product, recurrent, _: ((product + recurrent).tanh(),),
    "rnn_relu": lambda product, recurrent, _: ((product + recurrent).relu(),),
}
