"""The machine a benchmark ran on, the same conditions for every engine, and results as JSON."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"

# A virtual machine pays dearly for every page that is touched for the first time: an allocator that gives memory back
# between batches would be timed instead of the engine. All engines, peers too, keep theirs.
_ALLOCATOR = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 40)}
# OpenBLAS, where it is told to pretend to be another processor, is slower than it is.
_UNSET = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")


def conditions(threads: int) -> dict[str, str]:
    """Environment variables under which every engine runs."""
    kept = {name: value for name, value in os.environ.items() if name not in _UNSET}
    return {**kept, **_ALLOCATOR, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}


def start_again_under_conditions(threads: int) -> None:
    """Replace this process by itself under `conditions`, which are read when a process starts; set torch's threads."""
    wanted = conditions(threads)
    if any(os.environ.get(name) != wanted.get(name) for name in (*_ALLOCATOR, *_UNSET, "OMP_NUM_THREADS")):
        os.execve(sys.executable, [sys.executable, *sys.argv], wanted)  # noqa: S606 (the same program again)
    torch.set_num_threads(threads)


def environment(threads: int, packages: Sequence[str], **more: Any) -> dict[str, Any]:
    """What a reader needs to place the figures."""
    return {
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _output("git", "-C", str(ROOT), "rev-parse", "--short=12", "HEAD"),
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "threads": threads,
        "load_before": round(os.getloadavg()[0], 2),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {package: version(package) for package in packages},
        "allocator": {name: os.environ[name] for name in _ALLOCATOR if name in os.environ},
        **more,
    }


def write_results(path: Path, described: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> None:
    """One file a benchmark: {"environment": …, "rows": […]}, with a line for each fact and each row."""
    facts = ",\n".join(f"{_compact(name)}: {_compact(fact)}" for name, fact in described.items())
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        f'{{\n"environment": {{\n{facts}\n}},\n"rows": [\n' + ",\n".join(map(_compact, rows)) + "\n]\n}\n", "utf-8"
    )
    print(f"Written: {path}")


def _compact(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _output(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 (a fixed command)
    return done.stdout.strip()
