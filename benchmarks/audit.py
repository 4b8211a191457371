"""What a whole audit costs, from the files in the inbox to the linked report: by outputs, and by training examples.

Every figure is of a process of its own that runs the flow as `gradtrail audit` does, on one Prefect server.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import tempfile
import threading
import time
from itertools import pairwise
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

from beside import compared
from machine import RESULTS, environment, write_results
from small_project import MODEL, SmallProject, records

from gradtrail.serving import prefect_server
from gradtrail.session import flow_session
from gradtrail.tasks.core.workspace import Workspace

OUTPUTS = (100, 1_000, 10_000)
TRAINING_EXAMPLES = (1_000, 8_000, 64_000)
HIDDEN = 64
EMPTY_RUNS = 5
PARTS = 5
WANTED_EMPTY_SECONDS = 2.0


def prepare(project: SmallProject) -> None:
    """Body of a process: register, ingest and index; fit what the method needs by an audit of one output."""
    from gradtrail.flows.audit import audit
    from gradtrail.flows.index import index
    from gradtrail.flows.ingest import ingest

    with flow_session(project.workspace.root):
        project.register()
        ingest(project.workspace, MODEL)
        index(project.workspace, MODEL)
        project.drop("before.jsonl", records([10_000_000]))
        audit(project.workspace, MODEL)


def measure(workspace: Workspace, runs: int, answer: Connection) -> None:
    """Body of a process: the seconds of each of some audits one after the other, the outputs, and memory meanwhile."""
    import torch

    from gradtrail.flows.audit import audit

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    seconds, outputs = [], 0
    with flow_session(workspace.root), MemoryMeanwhile() as memory:
        for _ in range(runs):
            began = time.perf_counter()
            outputs += audit(workspace, MODEL).output_count
            seconds.append(time.perf_counter() - began)
    answer.send((seconds, outputs, memory.peak(), memory.by_part()))


class MemoryMeanwhile:
    """Resident memory of this process while a block runs, in MB of 2**20 bytes, looked at twenty times a second."""

    def __init__(self) -> None:
        self._seen: list[float] = []
        self._over = threading.Event()
        self._watcher = threading.Thread(target=self._watch)

    def __enter__(self) -> MemoryMeanwhile:
        self._watcher.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._watcher.join()

    @staticmethod
    def peak() -> int:
        """The most since the process began, as the kernel counts it."""
        lines = Path("/proc/self/status").read_text().splitlines()
        return round(next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024)

    def by_part(self) -> list[int]:
        """The median of what was seen in each fifth of the time."""
        edges = [len(self._seen) * part // PARTS for part in range(PARTS + 1)]
        return [round(median(self._seen[a : max(b, a + 1)])) for a, b in pairwise(edges)]

    def _watch(self) -> None:
        page = os.sysconf("SC_PAGE_SIZE") / 2**20
        while True:
            self._seen.append(int(Path("/proc/self/statm").read_text().split()[1]) * page)
            if self._over.wait(0.05):
                return


def in_process(target: Any, *arguments: Any) -> Any:
    """What the body sends, from a process that started with nothing in memory."""
    context = multiprocessing.get_context("spawn")
    mine, its = context.Pipe()
    process = context.Process(target=target, args=(*arguments, its) if target is measure else arguments)
    process.start()
    its.close()
    said = mine.recv() if target is measure else None
    process.join()
    if process.exitcode:
        raise RuntimeError(f"{target.__name__} failed, see above")
    return said


def measured(
    folder: Path, outputs: tuple[int, ...], training_examples: int, repetitions: int
) -> tuple[list[dict[str, Any]], float]:
    """One row for each number of outputs, and the seconds of an audit that finds nothing new.

    The most outputs are audited several times, in a process of their own each: what their memory gains is near to what
    its noise is.
    """
    project = SmallProject(folder, examples=training_examples, hidden=HIDDEN)
    project.home.mkdir(parents=True)
    in_process(prepare, project)
    rows, first = [], 0
    for count in outputs:
        runs = []
        for _ in range(repetitions if count == max(outputs) else 1):
            project.drop(f"from-{first}.jsonl", records(range(first, first + count)))
            first += count
            [seconds], audited, peak, by_part = in_process(measure, project.workspace, 1)
            if audited != count:
                raise RuntimeError(f"{audited} of {count} outputs were audited")
            runs.append((seconds, peak, by_part))
        taken = median(seconds for seconds, *_ in runs)
        report = max(path.stat().st_size for path in project.workspace.reports.glob("*/report.html"))
        row = {
            "outputs": count,
            "training_examples": training_examples,
            "outputs_per_second": round(count / taken, 2),
            "peak_memory_mb": max(peak for _, peak, _ in runs),
            "memory_mb_by_fifth_of_each_run": [by_part for *_, by_part in runs],
            "seconds": round(taken, 2),
            "largest_report_mb": round(report / 1e6, 1),
        }
        print(json.dumps(row), flush=True)
        rows.append(row)
    # The first run of a process pays for imports as well.
    seconds, audited, *_ = in_process(measure, project.workspace, EMPTY_RUNS + 1)
    if audited:
        raise RuntimeError(f"{audited} outputs were audited again")
    print(f"An empty run: {median(seconds[1:]):.2f} s", flush=True)
    return rows, median(seconds[1:])


def kept(path: Path) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """The rows and the seconds of empty runs that the file has already; nothing where there is no file."""
    if not path.is_file():
        return [], {}
    content = json.loads(path.read_text())
    return content["rows"], content["environment"]["seconds_of_an_empty_run"]


def beside_older(options: argparse.Namespace, described: dict[str, Any]) -> None:
    """Measure audits by an older commit and by today's code, in turns."""
    outputs, training_examples = max(options.outputs), max(options.training_examples)
    with tempfile.TemporaryDirectory(prefix="gradtrail-beside-") as name:
        folder = Path(name)
        with prefect_server(SmallProject(folder).settings.model_copy(update={"home": folder})):
            rows = compared(
                options.beside,
                folder,
                outputs=outputs,
                training_examples=training_examples,
                repetitions=options.repetitions,
                empty_runs=EMPTY_RUNS,
            )
    write_results(RESULTS / "audit_beside.json", {**described, "beside": options.beside}, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--outputs", type=int, nargs="+", default=list(OUTPUTS))
    parser.add_argument("--training-examples", type=int, nargs="+", default=list(TRAINING_EXAMPLES))
    parser.add_argument("--repetitions", type=int, default=3, help="runs of the most outputs")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=RESULTS / "audit.json")
    parser.add_argument("--beside", metavar="COMMIT", help="an older commit, run in turns with today's code instead")
    parser.add_argument("--keep", action="store_true", help="other rows that the file has: to go in pieces")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    packages = ["gradtrail", "torch", "prefect", "mlflow", "duckdb", "lancedb"]
    described = environment(options.threads, packages, hidden=HIDDEN)
    if options.beside:
        beside_older(options, described)
        return
    rows, empty = kept(options.output) if options.keep else ([], {})
    with tempfile.TemporaryDirectory(prefix="gradtrail-audit-") as name:
        settings = SmallProject(Path(name)).settings.model_copy(update={"home": Path(name)})
        with prefect_server(settings):
            for number in options.training_examples:
                found, empty[str(number)] = measured(
                    Path(name) / str(number), tuple(options.outputs), number, options.repetitions
                )
                measured_now = {(row["training_examples"], row["outputs"]) for row in found}
                rows = [row for row in rows if (row["training_examples"], row["outputs"]) not in measured_now] + found
                rows.sort(key=lambda row: (row["training_examples"], row["outputs"]))
                wanted = {"seconds_of_an_empty_run": empty, "wanted_seconds_of_an_empty_run": WANTED_EMPTY_SECONDS}
                write_results(options.output, {**described, **wanted}, rows)


if __name__ == "__main__":
    main()
