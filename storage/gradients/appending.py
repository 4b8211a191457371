"""Gathering measured batches into large appends: a commit costs as much for a hundred rows as for ten thousand."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any

import pyarrow as pa

from gradtrail.storage.gradients.table import IndexTable

COMMIT_BYTES = 64 << 20
COMMIT_SECONDS = 60.0


class Appending:
    """Takes measured batches for one index, and commits when enough have come together or enough time has passed.

    A context manager: leaving it commits the rest, also when measuring failed. What a kill takes is at most
    `commit_bytes` of rows, or `commit_seconds` of measuring; the next pass measures them again.
    """

    def __init__(
        self, table: IndexTable, *, commit_bytes: int = COMMIT_BYTES, commit_seconds: float = COMMIT_SECONDS
    ) -> None:
        self.written = 0
        self._table = table
        self._commit_bytes = commit_bytes
        self._commit_seconds = commit_seconds
        self._gathered: list[pa.Table] = []
        self._bytes = 0
        self._since = 0.0

    def add(self, **columns: Any) -> int:
        """Check a batch, the columns of `IndexTable.prepare`, and commit if it is time; return the rows newly written.

        Raises:
            DataError, StoreError: as `IndexTable.prepare` and `IndexTable.store`.
        """
        rows = self._table.prepare(**columns)
        if not self._gathered:
            self._since = time.monotonic()
        self._gathered.append(rows)
        self._bytes += rows.nbytes
        if self._bytes < self._commit_bytes and time.monotonic() - self._since < self._commit_seconds:
            return 0
        return self.commit()

    def commit(self) -> int:
        """Store what has come together; return the rows newly written."""
        rows, self._gathered, self._bytes = self._gathered, [], 0
        written = self._table.store(rows) if rows else 0
        self.written += written
        return written

    def __enter__(self) -> Appending:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.commit()
