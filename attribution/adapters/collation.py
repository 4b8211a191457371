"""From what users and their files hold (tensors, arrays, nested lists) to one tensor per batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gradtrail.errors import DataError
from gradtrail.nouns import Example


def as_tensor(value: Any, owner: str) -> Tensor:
    """A tensor of `value`: a tensor, an array, a number, or (nested) lists or arrays of numbers, as Parquet gives them.

    Raises:
        DataError: naming `owner`, when the value is ragged or holds something other than numbers.
    """
    if isinstance(value, Tensor):
        return value
    try:
        array = np.array(_as_lists(value))
        if array.dtype.kind not in "biuf":
            raise TypeError(f"values of type {array.dtype}")
    except (TypeError, ValueError) as cause:
        raise DataError(
            f"{owner} cannot become a tensor: {cause}.",
            "Give a tensor, an array or nested lists of numbers of equal length, or write your own collate.",
        ) from cause
    return torch.from_numpy(array)


def stack(examples: Sequence[Example], part: str, dtype: torch.dtype) -> Tensor:
    """Stack `inputs` or `target` (`part`) of all examples to (batch, …) of `dtype`.

    Raises:
        DataError: naming the example, when one is no array of numbers or has another shape than the first.
    """
    if not examples:
        raise DataError("A batch without examples.", "Pass at least one example.")
    values = [getattr(example, part) for example in examples]
    # Tensors of one type and shape, the usual case, need no look at each of them.
    if set(map(type, values)) == {Tensor} and len({value.dtype for value in values}) == 1:
        try:
            return torch.stack(values).detach().to(dtype)
        except RuntimeError:
            pass  # of different shapes: the error names the example
    return torch.stack(_tensors(examples, part, dtype)).detach()


def _tensors(examples: Sequence[Example], part: str, dtype: torch.dtype) -> list[Tensor]:
    tensors: list[Tensor] = []
    for example in examples:
        tensor = as_tensor(getattr(example, part), f"The {part} of example {example.example_id}").to(dtype)
        if tensors and tensor.shape != tensors[0].shape:
            raise DataError(
                f"The {part} of example {example.example_id} has shape {tuple(tensor.shape)}, but that of "
                f"{examples[0].example_id} has {tuple(tensors[0].shape)}.",
                "Bring all examples to one shape, or write your own collate that pads.",
            )
        tensors.append(tensor)
    return tensors


def move(value: Any, device: str | torch.device) -> Any:
    """`value` with every tensor in it on `device`, through tuples, lists and dicts."""
    return map_tensors(lambda tensor: tensor.to(device), value)


def map_tensors(change: Callable[[Tensor], Tensor], value: Any) -> Any:
    """`value` with every tensor in it changed, in a fixed order, through tuples, lists and dicts."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, Mapping):
        return {key: map_tensors(change, part) for key, part in value.items()}
    if isinstance(value, tuple | list):
        changed = [map_tensors(change, part) for part in value]
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            return type(value)(*changed)
        return type(value)(changed)
    return value


def required_field(record: Mapping[str, Any], name: str) -> Any:
    """The value of a field of an output record.

    Raises:
        DataError: naming field and record, when it is missing or null.
    """
    value = record.get(name)
    if value is None or (isinstance(value, float) and np.isnan(value)):
        raise DataError(
            f"Output record {record.get('record_id', '(no record_id)')!s} has no field {name!r}; it has "
            f"{', '.join(map(str, record)) or 'none'}.",
            f"Write {name!r} with every output, or override output_to_example in the adapter.",
        )
    return value


def _as_lists(value: Any) -> Any:
    # Parquet gives nested lists as object arrays of arrays, which numpy does not join by itself.
    if isinstance(value, np.ndarray):
        return [_as_lists(part) for part in value] if value.dtype == object else value
    if isinstance(value, list | tuple):
        return [_as_lists(part) for part in value]
    if hasattr(value, "detach"):
        return value.detach().cpu().numpy()
    return value
