"""A lock for the ledger file within this process.

DuckDB guards the file between processes with a POSIX lock. Such a lock belongs to the process and is lost as soon as
the process closes *any* handle of the file, for example after hashing or copying it; and one process cannot hold a file
open read-only and read-write at once. So threads of this process take this lock first: many readers, or one that
writes, hashes or copies.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from weakref import WeakValueDictionary

from gradtrail.errors import LedgerError


class ReadersWriterLock:
    """Many readers or one holder; see `lock_of`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._changed = threading.Condition()
        self._readers = 0
        self._held = False

    @contextmanager
    def shared(self, patience_seconds: float) -> Iterator[None]:
        """Enter beside other readers. Raises LedgerError when the holder stays longer than `patience_seconds`."""
        with self._changed:
            if not self._changed.wait_for(lambda: not self._held, patience_seconds):
                raise self._busy(patience_seconds)
            self._readers += 1
        try:
            yield
        finally:
            with self._changed:
                self._readers -= 1
                self._changed.notify_all()

    @contextmanager
    def exclusive(self, patience_seconds: float) -> Iterator[None]:
        """Enter alone. Raises LedgerError when others stay longer than `patience_seconds`."""
        with self._changed:
            if not self._changed.wait_for(lambda: not self._held and not self._readers, patience_seconds):
                raise self._busy(patience_seconds)
            self._held = True
        try:
            yield
        finally:
            with self._changed:
                self._held = False
                self._changed.notify_all()

    def _busy(self, patience_seconds: float) -> LedgerError:
        return LedgerError(
            f"The ledger {self._path} was in use by another part of this process for {patience_seconds:g} s.",
            "Close the connection that Ledger.read() gave before you write.",
        )


_locks: WeakValueDictionary[Path, ReadersWriterLock] = WeakValueDictionary()
_choosing = threading.Lock()


def lock_of(path: Path) -> ReadersWriterLock:
    """The one lock of a file, however its path is spelt. Keep the lock as long as you use the file."""
    resolved = path.resolve()
    with _choosing:
        lock = _locks.get(resolved)
        if lock is None:
            lock = ReadersWriterLock(resolved)
            _locks[resolved] = lock
        return lock
