"""From what users and their files hold (tensors, arrays, nested lists) to one tensor per batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gradtrail.errors import DataError
from gradtrail.nouns import Example

_WITHOUT_ARITHMETIC = {torch.uint16, torch.uint32, torch.uint64}


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

    Real numbers may be rounded to the precision of `dtype`; nothing else may change a value.

    Raises:
        DataError: naming the example, when one is no array of numbers, has another shape than the first, or holds a
            value that `dtype` cannot hold.
    """
    if not examples:
        raise DataError("A batch without examples.", "Pass at least one example.")
    values = [getattr(example, part) for example in examples]
    # Tensors of one type and shape, the usual case, need no look at each of them.
    if set(map(type, values)) == {Tensor} and len({value.dtype for value in values}) == 1:
        try:
            joined = torch.stack(values).detach()
        except RuntimeError:
            pass  # of different shapes: the error names the example
        else:
            if _changed(joined, dtype) is None:
                return joined.to(dtype)
    return torch.stack(_tensors(examples, part, dtype)).detach()


def stack_inputs(examples: Sequence[Example], dtype: torch.dtype | tuple[torch.dtype, ...]) -> Any:
    """The inputs of all examples, (batch, …); where one example has several inputs, a tuple or a dict of such tensors.

    An example has several where they are a dict, a tuple of tensors or arrays, or a list or tuple while `dtype` is a
    tuple. `dtype` is then the type of each; a single one is that of real numbers, beside which whole numbers stay.

    Raises:
        DataError: naming the example that does not fit.
    """
    first: Any = examples[0].inputs if examples else None
    several = isinstance(first, list | tuple) if isinstance(dtype, tuple) else _is_several(first)
    if isinstance(first, Mapping):
        return {key: _stack_part(examples, key, list(first), dtype, place) for place, key in enumerate(first)}
    if several:
        return tuple(_stack_part(examples, place, len(first), dtype, place) for place in range(len(first)))
    if isinstance(dtype, tuple):
        raise DataError(
            f"The inputs of example {examples[0].example_id if examples else '(none)'} are a {type(first).__name__}, "
            f"but the adapter's input_dtype names {len(dtype)} types.",
            "Give a tuple with one tensor for each, or let input_dtype be one type.",
        )
    return stack(examples, "inputs", dtype)


def _is_several(inputs: Any) -> bool:
    return isinstance(inputs, tuple) and bool(inputs) and all(isinstance(each, Tensor | np.ndarray) for each in inputs)


def _stack_part(
    examples: Sequence[Example],
    key: Any,
    expected: int | list[Any],
    dtype: torch.dtype | tuple[torch.dtype, ...],
    place: int,
) -> Tensor:
    if isinstance(dtype, tuple) and place >= len(dtype):
        raise DataError(
            f"Example {examples[0].example_id} has more inputs than the adapter's input_dtype has types: {len(dtype)}.",
            "Name one type for each.",
        )
    parts = []
    for example in examples:
        fits = (
            isinstance(example.inputs, Mapping) and list(example.inputs) == expected
            if isinstance(expected, list)
            else isinstance(example.inputs, list | tuple) and len(example.inputs) == expected
        )
        if not fits:
            raise DataError(
                f"The inputs of example {example.example_id} are not {expected} as those of {examples[0].example_id} "
                "are.",
                "Bring all examples to one form, or write your own collate.",
            )
        part = as_tensor(example.inputs[key], f"Part {key} of the inputs of example {example.example_id}")
        parts.append(Example(example.example_id, part, None))
    return stack(parts, "inputs", _part_dtype(parts, dtype, place))


def _part_dtype(parts: Sequence[Example], dtype: torch.dtype | tuple[torch.dtype, ...], place: int) -> torch.dtype:
    if isinstance(dtype, tuple):
        return dtype[place]
    given: torch.dtype = parts[0].inputs.dtype
    if given.is_floating_point or given.is_complex:
        return dtype if dtype.is_floating_point or dtype.is_complex else torch.float32
    return torch.bool if given == torch.bool else torch.int64


def class_numbers(targets: Tensor, examples: Sequence[Example]) -> Tensor:
    """Targets (batch,): class numbers as they are, or those of one-hot rows (batch, classes).

    Raises:
        DataError: naming the example whose row is not one-hot.
    """
    if targets.ndim <= 1:
        return targets
    rows = targets.flatten(1)
    if rows.shape[1] == 1:
        return rows.squeeze(1)
    for example, row in zip(examples, rows, strict=True):
        if not is_one_hot(row):
            raise DataError(
                f"The target of example {example.example_id} has {rows.shape[1]} numbers, which are not one-hot.",
                "Give the number of its class; for several labels, or probabilities, set target_dtype and write losses "
                "in the adapter (docs/recipes.md).",
            )
    return rows.argmax(1)


def is_one_hot(row: Tensor) -> bool:
    """Whether a row of numbers (classes,) is 1 in one place and 0 elsewhere."""
    return bool(((row == 0) | (row == 1)).all() and row.sum() == 1)


def _tensors(examples: Sequence[Example], part: str, dtype: torch.dtype) -> list[Tensor]:
    tensors: list[Tensor] = []
    for example in examples:
        given = as_tensor(getattr(example, part), f"The {part} of example {example.example_id}")
        changed = _changed(given, dtype)
        if changed is not None:
            raise DataError(
                f"The {part} of example {example.example_id} holds {changed}, which {_name(dtype)} cannot hold: it "
                f"would become {torch.tensor(changed, dtype=given.dtype).to(dtype).item()}.",
                f"Correct the value, or let the adapter's {'input' if part == 'inputs' else part}_dtype fit the data.",
            )
        tensor = (given.real if given.is_complex() and not dtype.is_complex else given).to(dtype)
        if tensors and tensor.shape != tensors[0].shape:
            raise DataError(
                f"The {part} of example {example.example_id} has shape {tuple(tensor.shape)}, but that of "
                f"{examples[0].example_id} has {tuple(tensors[0].shape)}.",
                "Bring all examples to one shape, or write your own collate that pads.",
            )
        tensors.append(tensor)
    return tensors


def _changed(values: Tensor, dtype: torch.dtype) -> bool | complex | None:
    """The first of `values` that `dtype` cannot hold; None where there is none.

    Rounding a real number to the precision of a floating point type is no change, unless it is too large for it.
    """
    if values.dtype == dtype or not values.numel():
        return None
    given = values.detach()
    if given.layout != torch.strided:
        given = given.coalesce().values() if given.layout == torch.sparse_coo else given.values()
    if given.dtype in _WITHOUT_ARITHMETIC:
        given = given.to(torch.int64)
        if given.min() < 0:
            return int(given[given < 0][0]) + (1 << 64)
    if given.is_complex() and not dtype.is_complex:
        if given.imag.any():
            return complex(given[given.imag != 0].flatten()[0].item())
        given = given.real
    kept = given.to(dtype)
    if given.is_floating_point() and dtype.is_floating_point:
        wrong = kept.isfinite() != given.isfinite()
    elif dtype.is_complex:
        return None
    else:
        # Back in the type it came from, and with the same sign: unsigned numbers come back from a change of sign.
        wrong = (kept.to(given.dtype) != given) | ((kept < 0) != (given < 0))
    if not wrong.any():
        return None
    found: bool | float = given[wrong].flatten()[0].item()
    return found


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


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
