"""What production does to gradtrail: flows killed at random moments, and what comes twice, late, or goes away.

Each trial runs a flow in a process of its own, disturbs it, runs it again undisturbed, and counts in the ledger: what
is lost or there twice. Nothing is mocked: SIGKILL, real servers, a real Postgres behind MLflow and Prefect.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from itertools import chain
from pathlib import Path

from machine import RESULTS, environment, write_results
from servers import Postgres, free_port, mlflow_server, postgres, prefect_on
from small_project import SmallProject, records
from trials import Row, Trials

from gradtrail.serving import prefect_server

FLOWS = ("ingest", "index", "calibrate", "audit", "watch")
OUTPUTS = 12
AWAY_SECONDS = 60.0


def kills(trials: Trials, flows: Sequence[str], number: int) -> Iterator[Row]:
    """Each flow, killed at moments drawn over the duration of a run that nothing disturbs; the shorter of two."""
    before = {"ingest": "registered", "index": "ingested", "calibrate": "indexed", "audit": "dropped"}
    for flow in flows:
        start = before.get(flow, "registered")
        durations = []
        for _ in range(2):
            trials.put_back(start)
            durations.append(trials.run(flow))
        duration = min(durations)
        expected, _ = trials.count(flow)
        row = Row(flow, "SIGKILL at a random moment")
        for _ in range(number):
            trials.put_back(start)
            interrupted = trials.killed(flow, trials.random.uniform(0, duration))
            trials.run(flow)
            row.add(trials.count(flow, expected)[1], interrupted)
        yield row


def deliveries(trials: Trials, number: int) -> Iterator[Row]:
    """Audits that overlap, outputs that come twice or late, and a model version that is deleted."""
    trials.put_back("dropped")
    trials.run("audit")
    expected, _ = trials.count("audit")

    def disturbed(fault: str, disturb: Callable[[], bool], wanted: Sequence[str]) -> Row:
        row = Row("audit", fault)
        for _ in range(number):
            trials.put_back("dropped")
            interrupted = disturb()
            trials.run("audit")
            row.add(trials.count("audit", wanted)[1], interrupted)
        return row

    def overlapping() -> bool:
        both = [trials.start("audit") for _ in range(2)]
        for process, answer in both:
            process.join()
            answer.close()
        return True

    def twice() -> bool:
        trials.project.drop("again.jsonl", records(range(OUTPUTS)))
        trials.run("audit")
        trials.project.drop("and-again.jsonl", records(range(OUTPUTS // 2)))
        return True

    def late() -> bool:
        trials.run("audit")
        trials.project.drop("late.jsonl", records(range(OUTPUTS, OUTPUTS + 3), day=1))
        return True

    def deleted() -> bool:
        trials.run("register")
        trials.run("watch")
        trials.project.drop("second.jsonl", records(range(OUTPUTS, OUTPUTS + 3), version=2))
        trials.run("delete")
        return True

    later = [f"audited inbox:out-{number}" for number in range(OUTPUTS, OUTPUTS + 3)]
    yield disturbed("two audits at once", overlapping, expected)
    yield disturbed("delivered twice", twice, expected)
    yield disturbed("three outputs delivered late", late, [*expected, *later])
    # The second version has the weights of the first, and so its index; the outputs of both are audited.
    same_weights = [word for word in expected if not word.startswith(("audited", "version"))]
    wanted = [*expected, *same_weights, "version small/2", *later]
    yield disturbed("model version deleted in MLflow", deleted, wanted)


def absences(folder: Path, source: random.Random, number: int, seconds: float) -> Iterator[Row]:
    """MLflow, or Postgres behind MLflow and Prefect, goes away in the middle of an audit and comes back."""
    if not number:
        return
    (folder / "alone").mkdir(parents=True)
    port = free_port()
    with Server(lambda: mlflow_server(folder / "alone", f"sqlite:///{folder / 'alone' / 'mlflow.db'}", port)) as mlflow:
        trials = remote_trials(folder / "alone", port, source)
        yield from away(trials, f"MLflow away for {seconds:.0f} s", mlflow.without, number, seconds)
    (folder / "postgres").mkdir()
    with postgres(["mlflow", "prefect"]) as database, ExitStack() as stack:
        port = free_port()
        stack.enter_context(mlflow_server(folder / "postgres", database.address("psycopg", "mlflow"), port))
        api = stack.enter_context(prefect_on(folder / "postgres", database.address("asyncpg", "prefect")))
        trials = remote_trials(folder / "postgres", port, source, api)
        fault = f"Postgres, behind MLflow and Prefect, away for {seconds:.0f} s"
        yield from away(trials, fault, lambda: without(database), number, seconds)


def away(
    trials: Trials, fault: str, absence: Callable[[], AbstractContextManager[None]], number: int, seconds: float
) -> Iterator[Row]:
    """Audits of new outputs, in which something is away for so long from a moment of the audit on."""
    trials.project.drop("first.jsonl", records([1000]))
    duration = trials.run("audit")
    row = Row("audit", fault)
    for trial in range(number):
        own = range(trial * OUTPUTS, (trial + 1) * OUTPUTS)
        expected, _ = trials.count("audit")
        trials.project.drop(f"{trial}.jsonl", records(own))
        process, answer = trials.start("audit")
        process.join(trials.random.uniform(0, duration))
        interrupted = process.exitcode is None
        with absence():
            time.sleep(seconds)
        process.join()
        answer.close()
        trials.run("audit")
        wanted = [*expected, *(f"audited inbox:out-{each}" for each in own)]
        row.add(trials.count("audit", wanted)[1], interrupted)
    yield row


def remote_trials(folder: Path, port: int, source: random.Random, prefect_api: str = "") -> Trials:
    """A project on an MLflow server, registered, ingested and indexed."""
    project = SmallProject(folder, tracking_uri=f"http://127.0.0.1:{port}")
    project.home.mkdir(parents=True)
    trials = Trials(project, folder / "kept", source, prefect_api)
    for step in ("register", "ingest", "index"):
        trials.run(step)
    return trials


class Server:
    """A server that can go away and come back within its block."""

    def __init__(self, server: Callable[[], AbstractContextManager[None]]) -> None:
        self._server = server
        self._running = ExitStack()

    def __enter__(self) -> Server:
        self._running.enter_context(self._server())
        return self

    def __exit__(self, *fault: object) -> None:
        self._running.close()

    @contextmanager
    def without(self) -> Iterator[None]:
        """A block in which it does not run; at its end it answers again."""
        self._running.close()
        yield
        self._running.enter_context(self._server())


@contextmanager
def without(database: Postgres) -> Iterator[None]:
    """A block in which Postgres does not run; at its end it answers again."""
    database.stop()
    yield
    database.start()


def prepare(trials: Trials) -> None:
    """The states that trials start from: registered, ingested, indexed, with outputs in the inbox."""
    trials.run("register")
    trials.keep("registered")
    trials.run("ingest")
    trials.keep("ingested")
    trials.run("index")
    trials.keep("indexed")
    trials.project.drop("first.jsonl", records(range(OUTPUTS)))
    trials.keep("dropped")


def kept(path: Path) -> list[Row]:
    """The rows that the file has already; none where there is no file."""
    return [Row(**row) for row in json.loads(path.read_text())["rows"]] if path.is_file() else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=20, help="kills a flow")
    parser.add_argument("--flows", nargs="*", choices=FLOWS, default=list(FLOWS), help="flows that are killed")
    parser.add_argument("--other-trials", type=int, default=3, help="trials of every other fault")
    parser.add_argument("--absences", type=int, default=3, help="times that MLflow goes away, and that Postgres does")
    parser.add_argument("--away-seconds", type=float, default=AWAY_SECONDS, help="how long")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=RESULTS / "faults.json")
    parser.add_argument("--keep", action="store_true", help="other rows that the file has: to go in pieces")
    options = parser.parse_args()
    packages = ["gradtrail", "prefect", "mlflow", "duckdb", "lancedb"]
    described = environment(options.threads, packages, seed=options.seed, outputs_an_audit=OUTPUTS)
    rows = kept(options.output) if options.keep else []
    source = random.Random(options.seed)  # noqa: S311 (moments, not secrets)
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    # MLflow's client asks again by itself for minutes: here it is left to the tasks.
    os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "1"
    # The process that is forked has imported LanceDB and not used it.
    os.environ["PYTHONWARNINGS"] = "ignore:lancedb fork support"
    with tempfile.TemporaryDirectory(prefix="gradtrail-faults-") as name:
        project = SmallProject(Path(name) / "project")
        project.home.mkdir(parents=True)
        trials = Trials(project, Path(name) / "kept", source)
        with prefect_server(project.settings.model_copy(update={"home": Path(name)})):
            prepare(trials)
            for row in chain(
                kills(trials, options.flows, options.trials),
                deliveries(trials, options.other_trials) if options.other_trials else (),
                absences(Path(name) / "remote", source, options.absences, options.away_seconds),
            ):
                rows = [each for each in rows if (each.flow, each.fault) != (row.flow, row.fault)] + [row]
                print(json.dumps(vars(row)), flush=True)
                # After each row, so that what stops a later one loses none.
                write_results(options.output, described, [vars(row) for row in rows])


if __name__ == "__main__":
    main()
