"""Whole audits by an older commit and by today's code, in turns on one machine: outputs a second, empty runs, memory.

Each tree runs its own `prepare` and `measure` of `audit.py`, every time in a process of its own, on one Prefect server.
As a program of its own this file is such a process.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
HIDDEN = 64


@contextmanager
def older_tree(commit: str, folder: Path) -> Iterator[Path]:
    """The files of a commit, checked out into a folder that is removed in the end."""
    tree = folder / "older"
    git = ["git", "-C", str(ROOT), "worktree"]
    subprocess.run([*git, "add", "--detach", "--quiet", str(tree), commit], check=True)  # noqa: S603 (a fixed command)
    try:
        yield tree
    finally:
        subprocess.run([*git, "remove", "--force", str(tree)], check=True)  # noqa: S603


def compared(
    commit: str, folder: Path, *, outputs: int, training_examples: int, repetitions: int, empty_runs: int
) -> list[dict[str, Any]]:
    """One row for the older commit and one for today's code, each with the figures of every turn."""
    with older_tree(commit, folder) as older:
        trees = {commit: older, "today": ROOT}
        homes = {name: folder / f"home-{number}" for number, name in enumerate(trees)}
        for name, tree in trees.items():
            _in_tree(tree, "prepare", homes[name], training_examples)
        audits: dict[str, list[dict[str, Any]]] = {name: [] for name in trees}
        empty: dict[str, list[float]] = {name: [] for name in trees}
        for turn in range(repetitions):
            for name, tree in trees.items():
                audits[name].append(_in_tree(tree, "audit", homes[name], training_examples, turn * outputs, outputs))
            for name, tree in trees.items():
                # The first run of a process pays for imports as well.
                seconds = _in_tree(tree, "empty", homes[name], training_examples, empty_runs + 1)["seconds"]
                empty[name] += seconds[1:]
    return [_row(name, outputs, training_examples, audits[name], empty[name]) for name in trees]


def _row(
    name: str, outputs: int, training_examples: int, audits: list[dict[str, Any]], empty: list[float]
) -> dict[str, Any]:
    seconds = [each["seconds"][0] for each in audits]
    row = {
        "code": name,
        "outputs": outputs,
        "training_examples": training_examples,
        "outputs_per_second": round(outputs / median(seconds), 2),
        "seconds": [round(each, 2) for each in seconds],
        "seconds_of_an_empty_run": round(median(empty), 3),
        "peak_memory_mb": [each["peak_memory_mb"] for each in audits],
    }
    print(json.dumps(row), flush=True)
    return row


def _in_tree(tree: Path, *job: object) -> Any:
    """What a process says that runs the code of a tree."""
    command = [sys.executable, __file__, str(tree), *map(str, job)]
    surroundings = {**os.environ, "PYTHONPATH": str(tree)}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=surroundings)  # noqa: S603
    said = done.stdout.splitlines()[-1]
    print(tree.name, job[0], said, file=sys.stderr, flush=True)
    return json.loads(said)


class _Answer:
    """What `measure` sends its figures through."""

    def send(self, found: tuple[list[float], int, int, list[int]]) -> None:
        seconds, outputs, peak, _ = found
        print(json.dumps({"seconds": seconds, "outputs": outputs, "peak_memory_mb": peak}))


def main() -> None:
    tree, job, home, training_examples, *numbers = sys.argv[1:]
    sys.path[0] = str(Path(tree) / "benchmarks")
    from audit import measure, prepare
    from small_project import SmallProject, records

    project = SmallProject(Path(home), examples=int(training_examples), hidden=HIDDEN)
    answer: Any = _Answer()
    if job == "prepare":
        project.home.mkdir(parents=True)
        prepare(project)
        print("{}")
    elif job == "audit":
        first, count = map(int, numbers)
        project.drop(f"from-{first}.jsonl", records(range(first, first + count)))
        measure(project.workspace, 1, answer)
    else:
        measure(project.workspace, int(numbers[0]), answer)


if __name__ == "__main__":
    main()
