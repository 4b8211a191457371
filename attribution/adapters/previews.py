"""What a report may show of an example's inputs: text, a picture, or a row of numbers."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gradtrail.attribution.adapters.collation import as_tensor
from gradtrail.errors import DataError
from gradtrail.nouns import Preview

_LONGEST_ROW = 64
_CHANNELS = (1, 3)
_PLANE, _CHANNELS_AND_PLANE = 2, 3


def preview_inputs(inputs: Any, owner: str, names: Sequence[str] = ()) -> Preview:
    """A PNG for (H, W) or (1 or 3, H, W), a row for up to 64 numbers, else a line of text.

    `names` are the column names of a row; positions stand in where it is shorter.
    """
    if isinstance(inputs, str):
        return Preview(kind="text", text=inputs)
    try:
        values = as_tensor(inputs, owner).detach().cpu()
    except DataError:
        return Preview(kind="text", text=f"{type(inputs).__name__} without a default preview")
    if values.ndim <= 1 and values.numel() <= _LONGEST_ROW:
        return _row(values, names)
    if not torch.isfinite(values).all():
        return _not_finite(values)
    colours = values.ndim == _CHANNELS_AND_PLANE and values.shape[0] in _CHANNELS
    if values.numel() and (values.ndim == _PLANE or colours):
        return Preview(kind="image", png=_png(values))
    return Preview(kind="text", text=f"array of shape {tuple(values.shape)}")


def _row(values: Tensor, names: Sequence[str]) -> Preview:
    numbers = values.reshape(-1).tolist()
    if not all(map(math.isfinite, numbers)):
        return _not_finite(values)
    columns = [*names, *map(str, range(len(names), len(numbers)))]
    return Preview(kind="row", row={name: f"{number:g}" for name, number in zip(columns, numbers, strict=False)})


def _not_finite(values: Tensor) -> Preview:
    return Preview(kind="text", text=f"array of shape {tuple(values.shape)} with values that are not finite")


def _png(values: Tensor) -> bytes:
    from PIL import Image

    pixels = _as_bytes(values)
    if pixels.ndim == _CHANNELS_AND_PLANE:
        pixels = pixels.permute(1, 2, 0).squeeze(2)
    stream = io.BytesIO()
    Image.fromarray(pixels.contiguous().numpy()).save(stream, format="PNG")
    return stream.getvalue()


def _as_bytes(values: Tensor) -> Tensor:
    """Bytes stay; 0 to 1 becomes 0 to 255; any other range is stretched to it."""
    if values.dtype == torch.uint8:
        return values
    numbers = values.double()
    low, high = numbers.min().item(), numbers.max().item()
    if low < 0 or high > 1:
        numbers = (numbers - low) / (high - low) if high > low else torch.full_like(numbers, 0.5)
    return (numbers * 255).round().to(torch.uint8)
