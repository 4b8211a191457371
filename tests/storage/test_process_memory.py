"""What reading an index makes of a process's memory, each time in a process of its own: it is chosen once."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from gradtrail.storage.process_memory import HUGE_PAGES

pytestmark = pytest.mark.ci  # processes whose memory is looked at

SAID = (
    "MALLOC_ARENA_MAX",
    "ARROW_DEFAULT_MEMORY_POOL",
    "GLIBC_TUNABLES",
    "MALLOC_MMAP_THRESHOLD_",
    "MALLOC_TRIM_THRESHOLD_",
)
POOL = "import gradtrail.storage.gradients.scan, pyarrow; print(pyarrow.default_memory_pool().backend_name)"

MAPPED_AGAIN = """
import ctypes
import numpy as np
import gradtrail.storage.gradients.scan

class Counts(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in "arena ord sm hblks hblkhd usm fsm uord ford keep".split()]

libc = ctypes.CDLL(None)
libc.mallinfo2.restype = Counts
del (first := {"block": np.ones(1 << 20)})["block"]
before = libc.mallinfo2().hblkhd
again = np.ones(1 << 20)
print(libc.mallinfo2().hblkhd - before >= again.nbytes)
"""

ARENAS = """
import ctypes, sys, threading
import gradtrail.storage.gradients.scan

threads = [threading.Thread(target=lambda: bytearray(100_000)) for _ in range(4)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
libc = ctypes.CDLL(None)
libc.fopen.restype = ctypes.c_void_p
stream = ctypes.c_void_p(libc.fopen(b"/dev/stdout", b"w"))
libc.malloc_info(0, stream)
libc.fclose(stream)
"""


def said_by(program, **environment):
    kept = {name: value for name, value in os.environ.items() if name not in SAID}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env={**kept, **environment}
    )
    return done.stdout.strip()


@pytest.mark.parametrize(("said", "chosen"), [({}, "system"), ({"ARROW_DEFAULT_MEMORY_POOL": "mimalloc"}, "mimalloc")])
def test_arrow_takes_its_memory_from_malloc_unless_the_environment_says_otherwise(said, chosen):
    assert said_by(POOL, **said) == chosen


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's malloc is what is told")
@pytest.mark.parametrize(("said", "mapped"), [(HUGE_PAGES, "True"), ({}, "False")])
def test_with_huge_pages_a_large_block_is_given_back_each_time(said, mapped):
    assert said_by(MAPPED_AGAIN, **said) == mapped


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's malloc is what is told")
@pytest.mark.parametrize(("said", "arenas"), [({}, range(1, 2)), ({"MALLOC_ARENA_MAX": "8"}, range(2, 9))])
def test_threads_share_one_arena_unless_the_environment_says_otherwise(said, arenas):
    assert said_by(ARENAS, **said).count("<heap nr=") in arenas
