"""What keeps a process's memory independent of how many rows it reads, and of how much it read before."""

from __future__ import annotations

import ctypes
import gc
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager

HUGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
"""Environment in which malloc asks the kernel for huge pages: 50,000 × 4,096 float32 are scored in half the time.

glibc reads it when a process starts, so it is for whoever starts one: `gradtrail serve`, a worker.
"""

_MMAP_THRESHOLD, _ARENA_MAX = -3, -8
"""M_MMAP_THRESHOLD and M_ARENA_MAX of glibc's malloc.h."""
_LARGE = 1 << 20


def bound_malloc() -> None:
    """Let glibc's malloc keep one arena, before Arrow and Lance are loaded and start threads that get one each.

    What the environment says already stays.

    Each arena keeps what was freed in it: a scan of 200,000 × 1,024 float32 grew to 784 MiB with the rows, and with few
    arenas to 557. With one it is as fast, and what one thread leaves free the next one takes: between the 2,000th and
    the 10,000th output of an audit the holes of several arenas grew from 42 to 73 MB, and those of one stayed between
    22 and 34.

    glibc also learns to keep large blocks, among which holes stay open: a pass over 4,096 columns took 8 % more memory
    for four times the rows. With huge pages it is told to give each large block back at once, and the pass takes the
    same. Without them that would cost half of the speed, for the kernel clears every page that is touched anew.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    if "MALLOC_ARENA_MAX" not in os.environ:
        ctypes.CDLL(None).mallopt(_ARENA_MAX, 1)
    if _has_huge_pages() and "MALLOC_MMAP_THRESHOLD_" not in os.environ:
        ctypes.CDLL(None).mallopt(_MMAP_THRESHOLD, _LARGE)


def bound_readers() -> None:
    """Let Lance read one fragment ahead, and Arrow take its memory from malloc; what the environment says stays.

    Fragments that are read ahead at once hold their pages each. Arrow's own allocator keeps what threads leave behind
    that have ended, as those of a flow's tasks do: 24 MB more for every thousand outputs audited.
    """
    import pyarrow

    os.environ.setdefault("LANCE_DEFAULT_FRAGMENT_READAHEAD", "1")
    if "ARROW_DEFAULT_MEMORY_POOL" not in os.environ:
        pyarrow.set_memory_pool(pyarrow.system_memory_pool())


@contextmanager
def collecting_only_new_objects() -> Iterator[None]:
    """Let Python's garbage collector leave alone, meanwhile, what lives already.

    A process that runs flows has imported a million objects, and each full collection visits them all: a fifth of the
    time of an audit of 1,000 outputs.
    """
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _has_huge_pages() -> bool:
    return "glibc.malloc.hugetlb=1" in os.environ.get("GLIBC_TUNABLES", "")
