"""Text columns of a batch that stay in Arrow until somebody asks for a value."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray


class ArrowText(Sequence[str]):
    """Text of B rows; a scoring pass asks for the ids of a few of them only."""

    def __init__(self, array: pa.StringArray) -> None:
        self._array = array

    def __len__(self) -> int:
        return len(self._array)

    @overload
    def __getitem__(self, position: int) -> str: ...
    @overload
    def __getitem__(self, position: slice) -> list[str]: ...
    def __getitem__(self, position: int | slice) -> str | list[str]:
        found: str | list[str] = (
            self._array[position].to_pylist() if isinstance(position, slice) else self._array[position].as_py()
        )
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self._array.to_pylist())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]  # as a list has none

    def __repr__(self) -> str:
        return repr(list(self))


class CodedText(Sequence[str]):
    """Text of B rows as `codes` (B,) int32 into its `distinct` values, so that sums by value need no text."""

    def __init__(self, codes: NDArray[np.int32], distinct: list[str]) -> None:
        self.codes = codes
        self.distinct = distinct

    @classmethod
    def of(cls, array: pa.StringArray) -> CodedText:
        """A column as codes; what is missing reads as ""."""
        coded: Any = pc.fill_null(array, "").dictionary_encode()
        return cls(coded.indices.to_numpy(), coded.dictionary.to_pylist())

    def __len__(self) -> int:
        return len(self.codes)

    @overload
    def __getitem__(self, position: int) -> str: ...
    @overload
    def __getitem__(self, position: slice) -> CodedText: ...
    def __getitem__(self, position: int | slice) -> str | CodedText:
        if isinstance(position, slice):
            return CodedText(self.codes[position], self.distinct)
        return self.distinct[int(self.codes[position])]

    def __iter__(self) -> Iterator[str]:
        return map(self.distinct.__getitem__, self.codes.tolist())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]  # as a list has none

    def __repr__(self) -> str:
        return repr(list(self))
