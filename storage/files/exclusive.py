"""One at a time: a lock on a file, which the end of the process that holds it lets go, a kill too."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gradtrail.errors import GradtrailError


@contextmanager
def holding(lock: Path, *, busy: GradtrailError | None = None) -> Iterator[None]:
    """Wait until nobody else, in this or another process on this host, holds the lock; then hold it.

    Raises:
        GradtrailError: `busy`, where it is given and somebody else holds the lock: then nobody waits.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (fcntl.LOCK_NB if busy else 0))
        except BlockingIOError:
            if busy is None:
                raise
            raise busy from None
        yield
