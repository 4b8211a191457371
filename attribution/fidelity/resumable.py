"""Many runs of training, each under a key: taken up where an earlier call stopped, on several threads if asked."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import groupby
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from gradtrail.errors import DataError, UsageError

RunKey: TypeAlias = tuple[int, int | None]
"""Seed and number of the left-out set; None is training on all data."""
Losses: TypeAlias = NDArray[np.float64]
Known: TypeAlias = Callable[[RunKey], Losses | None]
Keep: TypeAlias = Callable[[RunKey, Losses], None]
Request: TypeAlias = tuple[RunKey, frozenset[str]]


def nothing_known(key: RunKey) -> None:
    """No run was finished before."""


def keep_nothing(key: RunKey, losses: Losses) -> None:
    """Finished runs are not kept."""


def resumed_runs(
    run: Callable[[int, Set[str]], Losses],
    requests: Sequence[Request],
    shape: tuple[int, int],
    *,
    known: Known = nothing_known,
    keep: Keep = keep_nothing,
    workers: int = 1,
) -> Iterator[tuple[RunKey, Losses]]:
    """Losses of each request in order, (amounts, queries): known ones, or trained now and handed to `keep`.

    `known` and `keep` are called on the caller's thread. Several workers train different left-out sets of one seed at
    once, each on one thread of torch; what they find does not depend on how many they are.

    Raises:
        UsageError: for fewer than one worker.
        DataError: when a known run has another shape.
    """
    if workers < 1:
        raise UsageError(f"{workers} workers.", "Choose at least 1.")
    # Seed by seed, because batches are collated once for all runs of a seed.
    for _, group in groupby(requests, key=lambda request: request[0][0]):
        found = {key: (known(key), without) for key, without in group}
        missing = [(key, without) for key, (losses, without) in found.items() if losses is None]
        with _trained(run, missing, workers) as trained:
            for key, (earlier, _) in found.items():
                losses = next(trained) if earlier is None else earlier
                if losses.shape != shape:
                    raise DataError(
                        f"A kept run of training has shape {losses.shape}, where {shape} is expected.",
                        "Remove the kept runs and measure again.",
                    )
                if earlier is None:
                    keep(key, losses)
                yield key, losses


@contextmanager
def _trained(
    run: Callable[[int, Set[str]], Losses], requests: Sequence[Request], workers: int
) -> Iterator[Iterator[Losses]]:
    """The losses of the requests, in order; runs that have not begun are called off on leaving."""
    if workers == 1 or len(requests) < 2:  # noqa: PLR2004 (one run has nothing to share)
        yield (run(key[0], without) for key, without in requests)
        return
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    pool = ThreadPoolExecutor(workers, thread_name_prefix="training")
    try:
        futures = [pool.submit(run, key[0], without) for key, without in requests]
        yield (future.result() for future in futures)
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)
