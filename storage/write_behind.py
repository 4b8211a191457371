"""Writing one batch while the next is made: measuring need not wait for digests, disk and commits."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Batch = TypeVar("Batch")
Written = TypeVar("Written")


def write_behind(batches: Iterable[Batch], write: Callable[[Batch], Written]) -> Iterator[tuple[Batch, Written]]:
    """Each batch, once `write` has stored it, with what `write` returned; in order, and one at a time.

    `write` runs in a thread of its own while the next batch is made, so two batches are held at once. What `write`
    raises is raised here, before another batch is written; when making a batch fails, the one before is still stored.
    """
    with ThreadPoolExecutor(max_workers=1) as writer:
        waiting = None
        for batch in batches:
            if waiting is not None:
                yield waiting[0], waiting[1].result()
            waiting = batch, writer.submit(write, batch)
        if waiting is not None:
            yield waiting[0], waiting[1].result()
