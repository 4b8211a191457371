"""What every source of outputs does: hand over its records in order, and hear what became of them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol, runtime_checkable

from gradtrail.errors import DataError
from gradtrail.nouns import Fate


@dataclass(frozen=True)
class Arrival:
    """One record as it lies in its source, or the reason why it cannot be read.

    `place` is what messages call it, `origin` the file or source it is in, `name` its own id where it has one, else one
    that does not change while the record does not.
    """

    origin: str
    place: str
    name: str
    record: Mapping[str, Any] | None
    fault: DataError | None = None


@dataclass(frozen=True)
class FileMark:
    """A file that was read up to an end: what to compare it with before it is read again.

    `rows` and `size` are what was read of it; `sha256` is the digest of those bytes.
    """

    name: str
    size: int
    modified: str
    sha256: str
    rows: int


@dataclass(frozen=True)
class FileGone:
    """A file that was read once and is no longer there."""

    name: str


@dataclass(frozen=True)
class Settled:
    """What became of one record: waiting, sampled out or refused, and then `cause` says why."""

    name: str
    fate: Fate
    cause: str = ""


@runtime_checkable
class Source(Protocol):
    """A place that outputs are read from."""

    def arrivals(
        self, since: datetime | None, marks: Mapping[str, FileMark]
    ) -> Iterator[Arrival | FileMark | FileGone]:
        """Records from `since` on, in order of time or files, a mark after each file that need not come again, and in
        the end the files of `marks` that are gone.
        """
        ...

    def settle(self, settled: Collection[Settled]) -> None:
        """Hear what became of records, after that is kept; may be told the same again."""
        ...
