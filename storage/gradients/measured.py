"""What is measured for a training example or an output: its columns, the checks on the way in, and row digests."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from json.encoder import encode_basestring_ascii
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from gradtrail.errors import DataError
from gradtrail.storage.gradients.vector_codes import StoredVectors, VectorCode

DIGEST_BYTES = 32
_NAMED_AT_MOST = 5


def measured_fields(dimension: int, group_count: int, code: VectorCode) -> list[pa.Field]:
    """The columns that index rows and query rows share, and the digest of the whole row."""
    return [
        *code.fields(dimension),
        pa.field("loss", pa.float64(), nullable=False),
        pa.field("squared_norms", pa.list_(pa.float64(), group_count), nullable=False),
        pa.field("row_sha256", pa.binary(DIGEST_BYTES), nullable=False),
    ]


def measured_columns(
    kind: str,
    keys: Sequence[tuple[str, ...]],
    vectors: NDArray[np.float32],
    losses: NDArray[np.float64],
    squared_norms: NDArray[np.float64],
    fields: Sequence[pa.Field],
    code: VectorCode,
) -> list[pa.Array]:
    """Check what was measured for each of B rows and return it as the columns of `measured_fields`.

    Args:
        kind: what a row is, for messages: "example" or "output".
        keys: B tuples of text that begin with the row's id; they enter its digest.
        vectors: (B, D). losses: (B,). squared_norms: (B, G), of the unweighted vectors.
        fields: those of `measured_fields`; they say what D and G must be.
        code: how vectors are kept.

    Raises:
        DataError: a wrong shape or type, or a value that is not finite or that `code` cannot hold; it names the row.
    """
    types = {field.name: field.type for field in fields}
    _require_shape(kind, "vectors", vectors, (len(keys), types["vector"].list_size))
    _require_shape(kind, "losses", losses, (len(keys),))
    _require_shape(kind, "squared norms", squared_norms, (len(keys), types["squared_norms"].list_size))
    if not np.can_cast(vectors.dtype, np.float32, "safe"):
        raise DataError(
            f"The vectors of {kind} {keys[0][0] if keys else ''} are {vectors.dtype}; the store holds float32.",
            "Convert them to float32 first, so that the rounding is yours.",
        )
    vectors = np.ascontiguousarray(vectors, dtype=np.float32)
    losses = np.ascontiguousarray(losses, dtype=np.float64)
    squared_norms = np.ascontiguousarray(squared_norms, dtype=np.float64)
    for name, values in (("gradient", vectors), ("loss", losses), ("squared norm", squared_norms)):
        _require_finite(kind, name, keys, values)
    stored = code.encode(kind, [key[0] for key in keys], vectors)
    digests = row_digests(keys, stored, losses, squared_norms)
    columns = {
        "vector": stored.vectors,
        "scales": stored.scales,
        "squared_norms": squared_norms,
    }
    arrays: dict[str, pa.Array] = {
        name: pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), type=types[name])
        for name, values in columns.items()
        if name in types
    }
    arrays |= {"loss": pa.array(losses), "row_sha256": pa.array(digests, type=pa.binary(DIGEST_BYTES))}
    return [arrays[name] for name in types]


def row_digests(
    keys: Iterable[tuple[str, ...]],
    stored: StoredVectors,
    losses: NDArray[np.float64],
    squared_norms: NDArray[np.float64],
) -> list[bytes]:
    """The sha256 of each row: its keys as JSON, then vector, scales, loss and norms as little-endian bytes, as kept."""
    scalars = np.ascontiguousarray(np.column_stack([losses, squared_norms]), dtype="<f8")
    parts = [_bytes_of_rows(values) for values in (*stored.row_bytes(), scalars) if values.shape[1]]
    # What json.dumps(key) gives, at a fraction of its price.
    heads = (f"[{', '.join(map(encode_basestring_ascii, key))}]".encode() for key in keys)
    return [hashlib.sha256(b"".join(row)).digest() for row in zip(heads, *parts, strict=True)]


def _bytes_of_rows(values: NDArray[Any]) -> Iterator[memoryview]:
    """The bytes of each row of a contiguous (B, …) array."""
    row_bytes = values.shape[1] * values.itemsize
    whole = values.reshape(-1).view(np.uint8).data
    return (whole[start : start + row_bytes] for start in range(0, len(whole), row_bytes))


def require_unique(kind: str, keys: Sequence[tuple[str, ...]]) -> None:
    """Refuse a batch that holds one key twice, or an empty id.

    Raises:
        DataError: naming the first few.
    """
    if len(set(keys)) < len(keys):
        repeated = [key for key, count in Counter(keys).items() if count > 1]
        raise DataError(
            f"The same {kind} comes more than once in one batch: {first_few(' '.join(key) for key in repeated)}.",
            f"Give every {kind} an id of its own, or remove the duplicates.",
        )
    if any(not key[0] for key in keys):
        raise DataError(f"A row without {kind} id.", f"Give every {kind} a stable, non-empty id.")


def text_column(kind: str, values: Sequence[str | None]) -> pa.Array:
    """Text as an Arrow column.

    Raises:
        DataError: a value is not text, or not valid Unicode.
    """
    try:
        return pa.array(values, type=pa.string())
    except (pa.ArrowException, TypeError, UnicodeError) as fault:
        raise DataError(f"The {kind} of a row is not valid text: {fault}.", "Convert it to text first.") from fault


def first_few(names: Iterable[str]) -> str:
    """The first few names, and how many more there are."""
    names = list(names)
    listed = ", ".join(names[:_NAMED_AT_MOST])
    return f"{listed} and {len(names) - _NAMED_AT_MOST} more" if len(names) > _NAMED_AT_MOST else listed


def _require_shape(kind: str, name: str, values: NDArray[Any], expected: tuple[int, ...]) -> None:
    if tuple(values.shape) != expected:
        raise DataError(
            f"The {name} of a batch of {kind}s have shape {tuple(values.shape)}; this index needs {expected}.",
            "Measure them with the feature configuration the index was opened with.",
        )


def _require_finite(kind: str, name: str, keys: Sequence[tuple[str, ...]], values: NDArray[Any]) -> None:
    finite = np.isfinite(values)
    if not finite.all():
        finite = finite.reshape(len(keys), -1).all(axis=1)
        damaged = [key[0] for key, is_finite in zip(keys, finite, strict=True) if not is_finite]
        raise DataError(
            f"The {name} of {kind} {first_few(damaged)} is not finite (NaN or infinity).",
            f"Look at its data and its loss, mend it, or quarantine the {kind}.",
        )
