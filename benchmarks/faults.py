"""What production does to gradtrail: flows killed at random moments, and what comes twice, late, or goes away.

Each trial runs a flow in a process of its own, disturbs it, runs it again undisturbed, and counts in the ledger: what
is lost or there twice. Nothing is mocked: SIGKILL, a real MLflow server, one Prefect server for all trials.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import httpx
from machine import RESULTS, environment, write_results
from small_project import MODEL, SmallProject, records

from gradtrail.errors import GradtrailError
from gradtrail.lineage import queries
from gradtrail.serving import prefect_server
from gradtrail.session import flow_session
from gradtrail.storage.registry import CHECKPOINT_TAG, DATASET_TAG
from gradtrail.tasks.workspace import Workspace

FLOWS = ("ingest", "index", "calibrate", "audit", "watch")
OUTPUTS = 12
AWAY_SECONDS = 5.0
SERVER_START_SECONDS = 120
PRELOADED = ["gradtrail.flows.watch", "gradtrail.flows.audit", "gradtrail.tasks.verifying", "torch", "lancedb"]


class Count(NamedTuple):
    """What is missing, what is there more than once, and what `verify` says, after everything ran again."""

    lost: int
    duplicated: int
    problems: int


@dataclass
class Row:
    """Trials of one fault in one flow; `interrupted` are those in which the fault met the flow at work."""

    flow: str
    fault: str
    trials: int = 0
    interrupted: int = 0
    lost: int = 0
    duplicated: int = 0
    problems: int = 0

    def add(self, count: Count, interrupted: bool) -> None:
        """One more trial."""
        self.trials += 1
        self.interrupted += interrupted
        self.lost += count.lost
        self.duplicated += count.duplicated
        self.problems += count.problems


def run_step(project: SmallProject, flow: str) -> None:
    """One run of a flow on the project's model; or a new version of it, or its first one deleted."""
    from gradtrail.flows.audit import audit
    from gradtrail.flows.calibrate import calibrate
    from gradtrail.flows.index import index
    from gradtrail.flows.ingest import ingest
    from gradtrail.flows.watch import watch
    from gradtrail.tasks.calibration_plans import CalibrateOptions
    from gradtrail.tasks.watching import WatchedModel

    workspace = project.workspace
    if flow == "register":
        version = project.register()
        # As of a version that was registered by other means: ingest has to tag it.
        workspace.registry().client.delete_model_version_tag("small", str(version.version), CHECKPOINT_TAG)
    elif flow == "delete":
        workspace.registry().client.delete_model_version("small", "1")
    elif flow == "calibrate":
        options = CalibrateOptions(
            methods=("grad_dot", "influence"), weightings=(), steps=(2,), sets=8, seeds=2, most_queries=8
        )
        calibrate(workspace, MODEL, options)
    elif flow == "watch":
        watch(workspace, [WatchedModel(MODEL, calibrate=False)])
    else:
        {"ingest": ingest, "index": index, "audit": audit}[flow](workspace, MODEL)


def in_process(project: SmallProject, flow: str, answer: Connection) -> None:
    """Body of a process: say that it begins, run the flow, say how it ended."""
    import torch

    torch.set_num_threads(1)
    with flow_session(project.workspace.root):
        answer.send("begins")
        try:
            run_step(project, flow)
        except GradtrailError as fault:
            answer.send(str(fault))
        else:
            answer.send("")


def count_of(workspace: Workspace, flow: str, expected: Sequence[str], answer: Connection) -> None:
    """Body of a process: compare what is there with what an undisturbed run leaves."""
    from gradtrail.tasks.verifying import verify_workspace

    found = Counter(state_of(workspace, flow))
    wanted = Counter(expected or found)
    problems = len(verify_workspace(workspace).problems)
    answer.send((sorted(found.elements()), sum((wanted - found).values()), sum((found - wanted).values()), problems))


def state_of(workspace: Workspace, flow: str) -> Iterator[str]:
    """What the flow is there to leave behind, one word each; a word that comes twice is a duplicate."""
    with workspace.ledger().read() as connection:
        for version in queries.model_versions(connection):
            serving = version.checkpoint_ids[-1]
            yield f"version {version.model_version_id}"
            for index in queries.indexes_of(connection, serving):
                yield f"index {index.checkpoint_id} {index.feature_config['group_dimension']}"
                table = workspace.gradients().existing(index.index_id)
                for batch in table.stream(version=index.table_version) if table else ():
                    yield from (f"row {index.checkpoint_id} {example_id}" for example_id in batch.example_ids)
            for measured in queries.fidelities(connection, serving):
                yield f"fidelity {measured.method} {measured.weighting_id} {measured.metric}"
        for audit in queries.audits(connection):
            yield from (f"audited {output_id}" for output_id, _ in audit.outputs)
            if queries.report_of(connection, audit.audit_id) is None:
                yield f"no report {audit.audit_id}"
    if flow == "audit":
        yield from runs_beyond_one(workspace)
    if flow == "ingest":
        tags = workspace.registry().resolve(MODEL).tags
        yield from (f"tag {name}" for name in (CHECKPOINT_TAG, DATASET_TAG) if name in tags)


def runs_beyond_one(workspace: Workspace) -> Iterator[str]:
    """MLflow runs of audits that another run stands for already."""
    from gradtrail.storage.audit_runs import AUDIT_EXPERIMENT, AUDIT_TAG

    client = workspace.registry().client
    experiment = client.get_experiment_by_name(AUDIT_EXPERIMENT)
    runs = client.search_runs([experiment.experiment_id]) if experiment else []
    tagged = Counter(run.data.tags[AUDIT_TAG] for run in runs if AUDIT_TAG in run.data.tags)
    for audit_id, times in tagged.items():
        yield from (f"another run of {audit_id}" for _ in range(times - 1))


@dataclass
class Trials:
    """One project, put back to the same state before each trial; processes are forked from one with all imports."""

    project: SmallProject
    scratch: Path
    random: random.Random
    context: Any = field(default_factory=lambda: multiprocessing.get_context("forkserver"))

    def __post_init__(self) -> None:
        self.context.set_forkserver_preload(PRELOADED)

    @property
    def workspace(self) -> Workspace:
        """Of the project."""
        return self.project.workspace

    def start(self, flow: str) -> tuple[Any, Connection]:
        """A process that is about to begin the flow, and what it will say."""
        mine, its = self.context.Pipe()
        process = self.context.Process(target=in_process, args=(self.project, flow, its))
        process.start()
        its.close()
        if mine.recv() != "begins":
            raise RuntimeError(flow)
        return process, mine

    def run(self, flow: str) -> float:
        """One undisturbed run; returns its seconds.

        Raises:
            GradtrailError: it failed.
        """
        process, answer = self.start(flow)
        began = time.monotonic()
        process.join()
        taken = time.monotonic() - began
        said = answer.recv() if answer.poll() else f"exit code {process.exitcode}"
        if said:
            raise GradtrailError(f"The flow {flow} failed: {said}")
        return taken

    def killed(self, flow: str, seconds: float) -> bool:
        """Run the flow and kill it after so many seconds; returns whether it was still at work."""
        process, answer = self.start(flow)
        process.join(seconds)
        interrupted = process.exitcode is None
        process.kill()
        process.join()
        answer.close()
        return interrupted

    def count(self, flow: str, expected: Sequence[str] = ()) -> tuple[list[str], Count]:
        """What is there now, and how it differs from `expected`."""
        mine, its = self.context.Pipe()
        process = self.context.Process(target=count_of, args=(self.workspace, flow, list(expected), its))
        process.start()
        its.close()
        found, *differences = mine.recv()
        process.join()
        return found, Count(*differences)

    def keep(self, name: str) -> None:
        """Remember the home folder as it is."""
        shutil.copytree(self.project.home, self.scratch / name)

    def put_back(self, name: str) -> None:
        """Make the home folder what it was."""
        shutil.rmtree(self.project.home, ignore_errors=True)
        shutil.copytree(self.scratch / name, self.project.home)


def kills(trials: Trials, flows: Sequence[str], number: int) -> Iterator[Row]:
    """Each flow, killed at moments drawn over the duration of a run that nothing disturbs."""
    before = {"ingest": "registered", "index": "ingested", "calibrate": "indexed", "audit": "dropped"}
    for flow in flows:
        start = before.get(flow, "registered")
        trials.put_back(start)
        duration = trials.run(flow)
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
    # The first version cannot be resolved any more: its outputs are recorded and wait; the second one's are audited.
    kept = [word for word in expected if not word.startswith("audited")]
    same_weights = [word for word in kept if not word.startswith("version")]
    wanted = [*kept, *same_weights, "version small/2", *later]
    yield disturbed("model version deleted in MLflow", deleted, wanted)


def absences(folder: Path, source: random.Random, number: int) -> Iterator[Row]:
    """MLflow goes away in the middle of an audit, and comes back a few seconds later."""
    port = free_port()
    project = SmallProject(folder, tracking_uri=f"http://127.0.0.1:{port}")
    project.home.mkdir(parents=True)
    database = f"sqlite:///{folder / 'mlflow.db'}"
    trials = Trials(project, folder / "kept", source)
    with mlflow_server(folder, database, port):
        for step in ("register", "ingest", "index"):
            trials.run(step)
        project.drop("first.jsonl", records([1000]))
        duration = trials.run("audit")
    row = Row("audit", f"MLflow away for {AWAY_SECONDS:.0f} s and its start")
    for trial in range(number):
        own = range(trial * OUTPUTS, (trial + 1) * OUTPUTS)
        with mlflow_server(folder, database, port):
            expected, _ = trials.count("audit")
            project.drop(f"{trial}.jsonl", records(own))
            process, answer = trials.start("audit")
            process.join(source.uniform(0, duration))
            interrupted = process.exitcode is None
        time.sleep(AWAY_SECONDS)
        with mlflow_server(folder, database, port):
            process.join()
            answer.close()
            trials.run("audit")
            wanted = [*expected, *(f"audited inbox:out-{each}" for each in own)]
            row.add(trials.count("audit", wanted)[1], interrupted)
    yield row


@contextmanager
def mlflow_server(folder: Path, database: str, port: int) -> Iterator[None]:
    """An MLflow server, until the end of the block."""
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--backend-store-uri", database, "--artifacts-destination", str(folder / "artifacts"), "--workers", "1"]
    log = (folder / "server.log").open("ab")
    variables = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    process = subprocess.Popen(command, stdout=log, stderr=log, env=variables, start_new_session=True)  # noqa: S603 (ours)
    try:
        deadline = time.monotonic() + SERVER_START_SECONDS
        while not answers(f"http://127.0.0.1:{port}/health"):
            if process.poll() is not None or time.monotonic() > deadline:
                raise GradtrailError("The MLflow server does not start.", f"Look into {log.name}.")
            time.sleep(0.2)
        yield
    finally:
        # Its workers are in its session: they must not outlive it.
        os.killpg(process.pid, 9)
        process.wait()
        log.close()


def answers(address: str) -> bool:
    """Whether somebody answers well at the address."""
    try:
        return httpx.get(address, timeout=2).is_success
    except httpx.TransportError:
        return False


def free_port() -> int:
    """A port of loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=20, help="kills a flow")
    parser.add_argument("--flows", nargs="*", choices=FLOWS, default=list(FLOWS), help="flows that are killed")
    parser.add_argument("--other-trials", type=int, default=3, help="trials of every other fault")
    parser.add_argument("--absences", type=int, default=2, help="times that MLflow goes away")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=RESULTS / "faults.json")
    options = parser.parse_args()
    packages = ["gradtrail", "prefect", "mlflow", "duckdb", "lancedb"]
    described = environment(options.threads, packages, seed=options.seed, outputs_an_audit=OUTPUTS)
    rows: list[Row] = []
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
                absences(Path(name) / "remote", source, options.absences) if options.absences else (),
            ):
                rows.append(row)
                print(json.dumps(vars(row)), flush=True)
                # After each row, so that what stops a later one loses none.
                write_results(options.output, described, [vars(row) for row in rows])


if __name__ == "__main__":
    main()
