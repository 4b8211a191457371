"""Trials of faults: a flow in a process of its own, disturbed, run again; then what the ledger lacks or has twice."""

from __future__ import annotations

import multiprocessing
import random
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

from small_project import MODEL, SmallProject

from gradtrail.errors import GradtrailError
from gradtrail.lineage.read import queries
from gradtrail.session import flow_session
from gradtrail.storage.models.registry import CHECKPOINT_TAG, DATASET_TAG
from gradtrail.tasks.core.workspace import Workspace

PRELOADED = ["gradtrail.flows.watch", "gradtrail.flows.audit", "gradtrail.tasks.govern.verifying", "torch", "lancedb"]


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
    from gradtrail.tasks.calibrate.plans import CalibrateOptions
    from gradtrail.tasks.core.watched import WatchedModel

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


def in_process(project: SmallProject, flow: str, prefect_api: str, answer: Connection) -> None:
    """Body of a process: say that it begins, run the flow, say how it ended."""
    import torch
    from prefect.settings import PREFECT_API_URL, temporary_settings

    torch.set_num_threads(1)
    other_server = {PREFECT_API_URL: prefect_api} if prefect_api else {}
    with flow_session(project.workspace.root), temporary_settings(other_server):
        answer.send("begins")
        try:
            run_step(project, flow)
        except GradtrailError as fault:
            answer.send(str(fault))
        else:
            answer.send("")


def count_of(workspace: Workspace, flow: str, expected: Sequence[str], answer: Connection) -> None:
    """Body of a process: compare what is there with what an undisturbed run leaves."""
    from gradtrail.tasks.govern.verifying import verify_workspace

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
    from gradtrail.storage.models.audit_runs import AUDIT_EXPERIMENT, AUDIT_TAG

    client = workspace.registry().client
    experiment = client.get_experiment_by_name(AUDIT_EXPERIMENT)
    runs = client.search_runs([experiment.experiment_id]) if experiment else []
    tagged = Counter(run.data.tags[AUDIT_TAG] for run in runs if AUDIT_TAG in run.data.tags)
    for audit_id, times in tagged.items():
        yield from (f"another run of {audit_id}" for _ in range(times - 1))


@dataclass
class Trials:
    """One project, put back to the same state before each trial; processes are forked from one with all imports.

    Attributes:
        project: what the flows work on.
        scratch: where its states are kept.
        random: draws the moments of faults.
        prefect_api: address of another Prefect API than that of the environment.
    """

    project: SmallProject
    scratch: Path
    random: random.Random
    prefect_api: str = ""
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
        process = self.context.Process(target=in_process, args=(self.project, flow, self.prefect_api, its))
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
        # A process that ended without a word has closed its end: there is something to receive, and it is the end.
        said = answer.recv() if process.exitcode == 0 else f"exit code {process.exitcode}"
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
