"""The allocators that reading an index chooses, each in a process of its own: they are chosen once."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

POOL = "import gradtrail.storage.index_scan, pyarrow; print(pyarrow.default_memory_pool().backend_name)"


@pytest.mark.parametrize(("said", "chosen"), [(None, "system"), ("mimalloc", "mimalloc")])
def test_arrow_takes_its_memory_from_malloc_unless_the_environment_says_otherwise(said, chosen):
    environment = {name: value for name, value in os.environ.items() if name != "ARROW_DEFAULT_MEMORY_POOL"}
    if said:
        environment["ARROW_DEFAULT_MEMORY_POOL"] = said
    done = subprocess.run([sys.executable, "-c", POOL], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.strip() == chosen
