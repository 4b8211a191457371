"""Writing what was made while more is being made: measuring need not wait for digests, disk and commits."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from threading import Event
from typing import TypeVar

Batch = TypeVar("Batch")
Written = TypeVar("Written")


def write_behind(
    batches: Iterable[Batch], write: Callable[[Batch], Written], *, ahead: int = 1
) -> Iterator[tuple[Batch, Written]]:
    """Each batch, once `write` has stored it, with what `write` returned; in order, and one at a time.

    `write` runs in a thread of its own while the next batches are made: `ahead` of them may wait or be written, so
    `ahead` + 1 are held at once. What `write` raises is raised here, and no batch is written after it; when making a
    batch fails, those before it are still stored.
    """
    stopped = Event()

    def write_in_turn(batch: Batch) -> Written:
        if stopped.is_set():
            raise CancelledError
        try:
            return write(batch)
        except BaseException:
            stopped.set()
            raise

    waiting: deque[tuple[Batch, Future[Written]]] = deque()
    with ThreadPoolExecutor(max_workers=1) as writer:
        for batch in batches:
            while waiting and (len(waiting) >= ahead or waiting[0][1].done()):
                yield _oldest(waiting)
            waiting.append((batch, writer.submit(write_in_turn, batch)))
        while waiting:
            yield _oldest(waiting)


def _oldest(waiting: deque[tuple[Batch, Future[Written]]]) -> tuple[Batch, Written]:
    batch, writing = waiting.popleft()
    return batch, writing.result()
