"""How vectors are kept on disk: as float32, as float16, or as int8 with a scale for each row and group."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch.utils.dlpack import from_dlpack

from gradtrail.errors import DataError, UsageError

VectorType = Literal["float32", "float16", "int8"]
VECTOR_TYPES: tuple[VectorType, ...] = get_args(VectorType)
BYTES = {"float32": 4, "float16": 2, "int8": 1}
SCALE_BYTES = 4

_ARROW = {"float32": pa.float32(), "float16": pa.float16(), "int8": pa.int8()}
_LITTLE_ENDIAN = {"float32": "<f4", "float16": "<f2", "int8": "i1"}
_LARGEST_HALF = 65504
_LEVELS = 127
_CACHED_VALUES = 1 << 18


@dataclass(frozen=True)
class StoredVectors:
    """Vectors (B, D) in the type they are kept in; `scales` (B, G) float32 where that is int8, else (B, 0)."""

    vectors: NDArray[Any]
    scales: NDArray[np.float32]

    def row_bytes(self) -> tuple[NDArray[Any], NDArray[Any]]:
        """Both as contiguous little-endian arrays, for digests."""
        kind = _LITTLE_ENDIAN[self.vectors.dtype.name]
        return np.ascontiguousarray(self.vectors, dtype=kind), np.ascontiguousarray(self.scales, dtype="<f4")

    def is_finite(self) -> NDArray[np.bool_]:
        """Which rows hold finite numbers only: (B,)."""
        found: NDArray[np.bool_] = np.isfinite(self.vectors).all(axis=1) & np.isfinite(self.scales).all(axis=1)
        return found


@dataclass(frozen=True)
class VectorCode:
    """One way to keep vectors. `group_dimensions` say which columns share a scale; only int8 has any."""

    type: VectorType = "float32"
    group_dimensions: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Refuse what cannot be kept.

        Raises:
            UsageError: for another type, or int8 without groups.
        """
        if self.type not in VECTOR_TYPES:
            raise UsageError(f"Vectors cannot be stored as {self.type!r}.", f"Choose {', '.join(VECTOR_TYPES)}.")
        if self.type == "int8" and not self.group_dimensions:
            raise UsageError("Vectors stored as int8 need a scale per group.", "Give the dimension of every group.")

    def fields(self, dimension: int) -> list[pa.Field]:
        """The columns `vector` and, for int8, `scales`.

        Raises:
            UsageError: the groups do not add up to `dimension`.
        """
        if self.type == "int8" and sum(self.group_dimensions) != dimension:
            raise UsageError(
                f"Group dimensions add up to {sum(self.group_dimensions)}, not to the {dimension} of the vectors.",
                "Give the dimension of every group of the plan.",
            )
        fields = [pa.field("vector", pa.list_(_ARROW[self.type], dimension), nullable=False)]
        if self.type == "int8":
            scales = pa.list_(pa.float32(), len(self.group_dimensions))
            fields.append(pa.field("scales", scales, nullable=False))
        return fields

    def as_json(self) -> dict[str, Any]:
        """What differs from float32: the descriptions of such indexes stay as they are."""
        if self.type == "float32":
            return {}
        groups = {"group_dimensions": list(self.group_dimensions)} if self.type == "int8" else {}
        return {"dtype": self.type, **groups}

    def encode(self, kind: str, ids: Sequence[str], vectors: NDArray[np.float32]) -> StoredVectors:
        """Finite vectors (B, D) float32 as they will be kept.

        Raises:
            DataError: a value beyond the range of float16, naming the row: `kind` and its id.
        """
        if self.type == "float32":
            return StoredVectors(vectors, _no_scales(len(vectors)))
        values = torch.from_numpy(np.array(vectors))
        if self.type == "float16":
            halves = values.half()
            outside = ~torch.isfinite(halves).all(1)
            if outside.any():
                row = int(outside.nonzero()[0].item())
                raise DataError(
                    f"The gradient of {kind} {ids[row]} reaches {values[row].abs().max().item():.3g}; float16 holds at "
                    f"most {_LARGEST_HALF}.",
                    f"Store this index as int8, which keeps a scale for each row and group, or as float32; or "
                    f"quarantine the {kind}.",
                )
            return StoredVectors(halves.numpy(), _no_scales(len(vectors)))
        scales = torch.stack([values[:, columns].abs().amax(1) / _LEVELS for columns in self._slices()], dim=1)
        whole = torch.empty_like(values, dtype=torch.int8)
        for group, columns in enumerate(self._slices()):
            scale = scales[:, group : group + 1]
            steps = torch.where(scale > 0, values[:, columns] / scale, 0)
            whole[:, columns] = steps.round().clamp(-_LEVELS, _LEVELS).to(torch.int8)
        return StoredVectors(whole.numpy(), scales.numpy())

    def stored(self, batch: pa.RecordBatch) -> StoredVectors:
        """What a batch of the table holds, as it is kept: views of its Arrow memory."""
        vectors = matrix(batch, "vector")
        return StoredVectors(vectors, matrix(batch, "scales") if self.type == "int8" else _no_scales(len(vectors)))

    def decode(self, stored: StoredVectors) -> NDArray[np.float32]:
        """Vectors (B, D) as float32; where they are kept so, the very memory."""
        if self.type == "float32":
            return stored.vectors
        values = np.empty(stored.vectors.shape, dtype=np.float32)
        start = 0
        for piece in self.pieces(stored):
            values[start : start + len(piece)] = piece
            start += len(piece)
        return values

    def pieces(self, stored: StoredVectors) -> Iterator[NDArray[np.float32]]:
        """What `decode` returns, in order, a few rows at a time, which still lie in the processor's cache.

        Torch widens half precision several times faster than numpy.
        """
        if self.type == "float32":
            yield stored.vectors
            return
        # By dlpack, because torch.from_numpy warns that Arrow's memory is read-only.
        kept, scales = from_dlpack(stored.vectors), from_dlpack(stored.scales)
        rows = max(1, _CACHED_VALUES // max(1, kept.shape[1]))
        for start in range(0, len(kept), rows):
            values = kept[start : start + rows].to(torch.float32)
            if self.type == "int8":
                self._apply(scales[start : start + rows], values)
            yield values.numpy()

    def _apply(self, scales: torch.Tensor, values: torch.Tensor) -> None:
        if len(set(self.group_dimensions)) == 1:
            values.view(len(values), len(self.group_dimensions), -1).mul_(scales[:, :, None])
            return
        for group, columns in enumerate(self._slices()):
            values[:, columns] *= scales[:, group : group + 1]

    def _slices(self) -> list[slice]:
        ends = list(accumulate(self.group_dimensions))
        return [slice(end - size, end) for end, size in zip(ends, self.group_dimensions, strict=True)]


def no_vectors(rows: int) -> StoredVectors:
    """Rows of which the vectors were not read."""
    return StoredVectors(_no_scales(rows), _no_scales(rows))


def _no_scales(rows: int) -> NDArray[np.float32]:
    return np.empty((rows, 0), dtype=np.float32)


def matrix(batch: pa.RecordBatch, name: str) -> NDArray[Any]:
    """A fixed-size list column as a (B, size) view of its Arrow memory, without a copy."""
    column = batch.column(name)
    width = column.type.list_size
    # `flatten` would copy; what lies under a slice is all of the array it was cut from.
    within = column.values.slice(column.offset * width, len(column) * width)
    values: NDArray[Any] = within.to_numpy(zero_copy_only=True).reshape(-1, width)
    return values
