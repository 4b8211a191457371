"""How tests run the scripts of benchmarks: several in one fresh process, for imports take longer than tiny runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
ONE_AFTER_ANOTHER = """
import json, runpy, sys
sys.path.insert(0, sys.argv[1])
for sys.argv in json.loads(sys.argv[2]):
    runpy.run_path(sys.argv[0], run_name="__main__")
"""
# The conditions of a race; without them a script replaces its process by itself.
CONDITIONS = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 40), "OMP_NUM_THREADS": "1"}


def _run_scripts(*calls: list[str]) -> None:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("OPENBLAS_")}
    scripts = json.dumps([[str(BENCHMARKS / name), *options] for name, *options in calls])
    command = [sys.executable, "-c", ONE_AFTER_ANOTHER, str(BENCHMARKS), scripts]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**kept, **CONDITIONS})
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="session")
def run_scripts() -> Callable[..., None]:
    """Runs scripts one after another, each given by its name and options."""
    return _run_scripts
