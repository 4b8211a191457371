"""One at a time: a lock on a file, which the end of the process that holds it lets go, a kill too."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gradtrail.errors import GradtrailError


@contextmanager
def holding(lock: Path, *, busy: GradtrailError | None = None) -> Iterator[None]:
    """Wait until nobody else, in this or another process on this host, holds the lock; then hold it.

    Raises:
        GradtrailError: `busy`, where it is given and somebody else holds the lock: then nobody waits.
        RuntimeError: this thread holds the lock already and would wait for itself.
        OSError: the lock cannot be made or the file system has no locks. Filelock's own way out of that, a file that
            stands for the lock, would outlive a killed process.
    """
    from filelock import FileLock, Timeout

    held = FileLock(lock, blocking=busy is None, fallback_to_soft=False)
    try:
        held.acquire()
    except Timeout:
        if busy is None:
            raise
        raise busy from None
    try:
        yield
    finally:
        held.release()
