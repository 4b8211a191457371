"""One at a time: a lock on a file, which the end of the process that holds it lets go, a kill too."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def holding(lock: Path) -> Iterator[None]:
    """Wait until nobody else, in this or another process on this host, holds the lock; then hold it."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
