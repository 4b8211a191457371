"""From whatever a model returns to the one tensor that losses are computed from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from torch import Tensor

from gradtrail.errors import ModelError

_NAMES = ("logits", "sample")
"""Where transformers and diffusers keep what a loss is computed from."""


def output_tensor(found: Any) -> Tensor:
    """The outputs in what a model returns: a tensor, its `logits` or `sample`, or the first tensor of several.

    A number alone, such as a loss that the model has computed too, is passed over where anything else is there.

    Raises:
        ModelError: there is no tensor in it.
    """
    if isinstance(found, Tensor):
        return found
    for name in _NAMES:
        named = found.get(name) if isinstance(found, Mapping) else getattr(found, name, None)
        if isinstance(named, Tensor):
            return named
    tensors = list(_tensors(found))
    if not tensors:
        raise ModelError(
            f"The model returns a {type(found).__name__} without a tensor, where outputs (batch, …) are expected.",
            "Write outputs(model, batch) in the adapter, and let it return what the loss is computed from.",
        )
    return next((tensor for tensor in tensors if tensor.ndim), tensors[0])


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from _tensors(part)
    elif isinstance(value, tuple | list):
        for part in value:
            yield from _tensors(part)
    elif is_dataclass(value):
        for field in fields(value):
            yield from _tensors(getattr(value, field.name))


def examples_first(outputs: Tensor, targets: Any) -> Tensor:
    """Outputs of a lone example with the dimension that `.squeeze()` in a model has taken away."""
    if isinstance(targets, Tensor) and targets.ndim and len(targets) == 1 and (not outputs.ndim or len(outputs) != 1):
        return outputs.unsqueeze(0)
    return outputs
