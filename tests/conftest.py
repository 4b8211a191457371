"""Fixtures of the whole house: a real Chromium, a Prefect server, the demo run once, a user's small project."""

from __future__ import annotations

import copy
import json
import math
import os
import shutil
import sqlite3
import sys
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service

if TYPE_CHECKING:
    from gradtrail.attribution.adapters.base import ModelAdapter
    from gradtrail.lineage.read.answers import AuditDetails
    from gradtrail.settings import Settings
    from gradtrail.storage.models.registry import RegisteredVersion
    from gradtrail.tasks.audit.options import AuditOptions
    from gradtrail.tasks.core.workspace import Workspace

_CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome")
_QUIET = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


_LONGEST = ("demo", "tests/benchmarks/", "tests/flows/", "tests/packaging/", "tests/cli/", "tests/tasks/", "tests/")
"""Groups of tests by how their names begin, in the order in which they are started."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of one file go to one worker, so that they share its fixtures, and all that read the demo to one.

    What takes longest starts first: started last, it would be waited for by a worker that has nothing left to do.
    """
    groups = {item: "demo" if "demo" in item.fixturenames else item.nodeid.partition("::")[0] for item in items}
    for item, group in groups.items():
        item.add_marker(pytest.mark.xdist_group(group))
    items.sort(key=lambda item: next(place for place, name in enumerate(_LONGEST) if groups[item].startswith(name)))


@pytest.fixture(autouse=True)
def _mlflow_as_before() -> Iterator[None]:
    """MLflow keeps the address that a test gave it in the environment, where settings of other tests would find it."""
    before = os.environ.get("MLFLOW_TRACKING_URI")
    yield
    if os.environ.get("MLFLOW_TRACKING_URI") != before:
        import mlflow

        mlflow.set_tracking_uri(before)
        if before is None:
            os.environ.pop("MLFLOW_TRACKING_URI", None)


@pytest.fixture(scope="session")
def browser() -> Iterator[webdriver.Chrome]:
    """One Chromium for the session. Without one, tests skip, or fail where GRADTRAIL_REQUIRE_BROWSER=1."""
    chromium = next((path for name in _CHROMIUM_NAMES if (path := shutil.which(name))), None)
    driver = shutil.which("chromedriver")
    if chromium is None or driver is None:
        missing = "chromium" if chromium is None else "chromedriver"
        if os.environ.get("GRADTRAIL_REQUIRE_BROWSER") == "1":
            pytest.fail(f"{missing} is not installed, and GRADTRAIL_REQUIRE_BROWSER=1 asks for it")
        pytest.skip(f"{missing} is not installed; set GRADTRAIL_REQUIRE_BROWSER=1 to fail here")
    with tempfile.TemporaryDirectory(prefix="gradtrail-chromium-", ignore_cleanup_errors=True) as profile:
        options = Options()
        options.binary_location = chromium
        for argument in (*_QUIET, f"--user-data-dir={Path(profile)}"):
            options.add_argument(argument)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        chrome = webdriver.Chrome(options=options, service=Service(executable_path=driver))
        chrome.set_page_load_timeout(60)
        try:
            yield chrome
        finally:
            chrome.quit()


@contextmanager
def _serving_flows(*, events: bool) -> Iterator[None]:
    """A real Prefect server, and flows without the heartbeat whose end each waits a second for."""
    from prefect.settings import (
        PREFECT_FLOWS_HEARTBEAT_FREQUENCY,
        PREFECT_SERVER_SERVICES_EVENT_PERSISTER_ENABLED,
        PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_ENABLED,
        temporary_settings,
    )
    from prefect.testing.utilities import prefect_test_harness

    with (
        temporary_settings(
            {
                PREFECT_SERVER_SERVICES_EVENT_PERSISTER_ENABLED: events,
                PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_ENABLED: events,
            }
        ),
        prefect_test_harness(server_startup_timeout=120),
        temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}),
    ):
        yield


@pytest.fixture(scope="session")
def prefect_server() -> Iterator[None]:
    """One Prefect server for the session's flows. It keeps no events: writing them is five sixths of its work."""
    with _serving_flows(events=False):
        yield


@pytest.fixture
def prefect_events(prefect_server: None) -> Iterator[None]:
    """A Prefect server of its own for one test, which keeps what flows and tasks tell it."""
    with _serving_flows(events=True):
        yield


@dataclass(frozen=True)
class DemoRun:
    """The demo, run once: its settings, where it lives, and what it printed."""

    settings: Settings
    workspace: Workspace
    printed: str


@pytest.fixture(scope="session")
def demo(prefect_server: None, migrated_mlflow: Path, tmp_path_factory: pytest.TempPathFactory) -> DemoRun:
    """`gradtrail demo` in a folder of its own."""
    from gradtrail.demo.run import run_demo
    from gradtrail.settings import Settings, embedded_tracking_uri

    home = tmp_path_factory.mktemp("demo") / "home"
    home.mkdir()
    shutil.copy(migrated_mlflow, home / "mlflow.db")
    settings = Settings(
        home=home, mlflow_tracking_uri=embedded_tracking_uri(home), policy=home / "policy.toml", preview="full"
    )
    with redirect_stdout(StringIO()) as printed:
        run_demo(settings, calibration_seeds=2, calibration_halves=12)
    return DemoRun(settings, settings.workspace(), printed.getvalue())


@pytest.fixture(scope="session")
def migrated_mlflow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty MLflow database to copy: creating one takes seconds."""
    from gradtrail.storage.models.registry import Registry

    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    Registry(f"sqlite:///{path}").client.search_registered_models()
    return path


_TINY_ADAPTER = """
import json
from pathlib import Path

import torch
from torch import nn

import gradtrail

DATA = json.loads(Path(__file__).with_suffix(".json").read_text())


class Adapter(gradtrail.ClassificationAdapter):
    def build_model(self):
        return nn.Sequential(nn.Linear(4, DATA.get("hidden", 6)), nn.ReLU(), nn.Linear(DATA.get("hidden", 6), 3))

    def training_data(self):
        return [
            gradtrail.Example(
                row["id"], torch.tensor(row["inputs"], dtype=torch.float32), row["label"], row.get("attributes", {})
            )
            for row in DATA["rows"]
        ]
"""


class TinyProject:
    """A user's project in a folder of its own: an adapter module, its data, and settings that allow it."""

    def __init__(self, folder: Path, migrated_mlflow: Path) -> None:
        from gradtrail.settings import Settings

        self.folder = folder
        self.module = f"tiny_{uuid.uuid4().hex[:12]}"
        self.reference = f"{self.module}:Adapter"
        self.home = folder / "home"
        self.home.mkdir(parents=True)
        shutil.copyfile(migrated_mlflow, self.home / "mlflow.db")
        self.rows = [
            {
                "id": f"row-{i}",
                "inputs": [math.sin(i * (j + 1)) for j in range(4)],
                "label": i % 3,
                "attributes": {"source": "left" if i % 2 else "right", "licence": "CC0-1.0"},
            }
            for i in range(40)
        ]
        self.write()
        self.settings = Settings(
            home=self.home,
            mlflow_tracking_uri=f"sqlite:///{self.home / 'mlflow.db'}",
            allowed_adapters=(self.reference,),
            adapter_path=folder,
        )
        self.workspace = self.settings.workspace()

    def copy(self, folder: Path) -> TinyProject:
        """The project as it is now, in another folder: what a test does to the copy, no other sees.

        Weights and manifest stay where the ledger says that they are: in the folder of the first.
        """
        copied = copy.copy(self)
        copied.folder, copied.home, copied.rows = folder, folder / "home", copy.deepcopy(self.rows)
        shutil.copytree(self.folder, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("mlflow.db*"))
        with (
            closing(sqlite3.connect(self.home / "mlflow.db")) as before,
            closing(sqlite3.connect(copied.home / "mlflow.db")) as now,
            now,
        ):
            before.backup(now)
            for table, column in (("experiments", "artifact_location"), ("runs", "artifact_uri")):
                moved = f"UPDATE {table} SET {column} = replace({column}, ?, ?)"  # noqa: S608 - our own names
                now.execute(moved, (self.folder.as_uri(), folder.as_uri()))
        copied.settings = self.settings.model_copy(
            update={
                "home": copied.home,
                "mlflow_tracking_uri": f"sqlite:///{copied.home / 'mlflow.db'}",
                "adapter_path": folder,
            }
        )
        copied.workspace = copied.settings.workspace()
        self.forget()
        return copied

    def forget(self) -> None:
        """Let no later import of the adapter's module find this folder."""
        sys.modules.pop(self.module, None)
        sys.path[:] = [entry for entry in sys.path if entry != str(self.folder.resolve())]

    def write(self, **options: object) -> None:
        """Write the adapter's module and data."""
        (self.folder / f"{self.module}.py").write_text(_TINY_ADAPTER)
        (self.folder / f"{self.module}.json").write_text(json.dumps({"rows": self.rows, **options}))

    def adapter(self) -> ModelAdapter:
        """The adapter, loaded as gradtrail loads it."""
        from gradtrail.attribution.adapters.loading import load_adapter

        return load_adapter(self.reference, allowed=[self.reference], search_path=self.folder).adapter

    def register(self, **options: object) -> RegisteredVersion:
        """Train nothing, register an initialised model as `tiny@champion`."""
        import torch

        from gradtrail.tasks.ingest.registering import register_model

        adapter = self.adapter()
        torch.manual_seed(0)
        model = adapter.build_model()
        given = {
            "adapter": adapter,
            "training_data": None,
            "name": "tiny",
            "checkpoints": [],
            "aliases": ["champion"],
            "parameters": {},
            "run_id": "",
        }
        return register_model(self.workspace.registry(), model, **{**given, **options})

    def record(self, number: int, **changes: object) -> dict[str, object]:
        """An output record that the registered model would write."""
        import torch

        inputs = [math.cos(number * (j + 1)) for j in range(4)]
        torch.manual_seed(0)
        with torch.no_grad():
            prediction = int(self.adapter().build_model()(torch.tensor([inputs])).argmax())
        made = {
            "record_id": f"out-{number}",
            "model": "tiny",
            "version": 1,
            "time": f"2026-02-01T00:{number % 60:02d}:00+00:00",
            "inputs": inputs,
            "prediction": prediction,
        }
        return {key: value for key, value in {**made, **changes}.items() if value is not None}

    def drop(self, name: str, *records: dict[str, object]) -> Path:
        """Put records into the inbox as JSON Lines."""
        self.workspace.inbox.mkdir(parents=True, exist_ok=True)
        path = self.workspace.inbox / name
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
        return path

    def record_audit(
        self,
        asked: AuditOptions | None = None,
        *,
        model_version_id: str = "tiny/1",
        retry_refused: bool = False,
        report: bool = False,
        **options: object,
    ) -> str:
        """Audit what waits as far as the ledger, and its report where asked for: no links, no pages, no scheduler.

        Returns the audit's id; empty where nothing could be measured.
        """
        from gradtrail.tasks.audit.audited_model import AuditedModel
        from gradtrail.tasks.audit.options import AuditOptions
        from gradtrail.tasks.auditing import score_outputs
        from gradtrail.tasks.calibrated import resolve_audit
        from gradtrail.tasks.collecting import collect_outputs, pending_outputs
        from gradtrail.tasks.measuring import measure_outputs
        from gradtrail.tasks.report.reported_audits import ShownAudit
        from gradtrail.tasks.reporting import write_audit_report

        resolved = resolve_audit.fn(self.workspace, model_version_id, asked or AuditOptions(**options))
        audited = AuditedModel(self.workspace, model_version_id, resolved.index_ids, resolved.options)
        collect_outputs.fn(self.workspace)
        target = resolved.options.target
        pending = pending_outputs.fn(self.workspace, model_version_id, target, retry_refused).output_ids
        measured = measure_outputs.fn(audited, pending)
        if not measured.outputs:
            return ""
        audit_id = str(score_outputs.fn(audited, measured))
        if report:
            write_audit_report.fn(ShownAudit(self.workspace, audit_id))
        return audit_id

    def recorded(self, audit_id: str) -> AuditDetails:
        """An audit as the ledger has it."""
        from gradtrail.lineage.read import queries

        with self.workspace.ledger().read() as connection:
            return queries.audit_details(connection, audit_id)

    def report(self, audit_id: str) -> dict[str, Any]:
        """An audit's report, from its JSON file."""
        return dict(json.loads((self.workspace.reports / audit_id / "report.json").read_text()))


@pytest.fixture
def tiny(tmp_path: Path, migrated_mlflow: Path) -> Iterator[TinyProject]:
    """A small project of a user, nothing registered yet."""
    made = TinyProject(tmp_path, migrated_mlflow)
    yield made
    made.forget()


@pytest.fixture(scope="session")
def tiny_project() -> type[TinyProject]:
    """For fixtures that outlive one test: makes small projects in folders of their own."""
    return TinyProject


@pytest.fixture(scope="session")
def ingested_once(tmp_path_factory: pytest.TempPathFactory, migrated_mlflow: Path, prefect_server: None) -> TinyProject:
    """A small project whose version 1 is ingested; copy it, never change it."""
    from gradtrail.flows.ingest import ingest

    made = TinyProject(tmp_path_factory.mktemp("ingested"), migrated_mlflow)
    made.register()
    ingest(made.workspace, "tiny@champion")
    return made


@pytest.fixture(scope="session")
def indexed_once(tmp_path_factory: pytest.TempPathFactory, ingested_once: TinyProject) -> TinyProject:
    """The same with an index of its one checkpoint; copy it, never change it."""
    from gradtrail.flows.index import index

    made = ingested_once.copy(tmp_path_factory.mktemp("indexed"))
    index(made.workspace, "tiny@champion")
    return made


@pytest.fixture
def ingested(tmp_path: Path, ingested_once: TinyProject) -> Iterator[TinyProject]:
    """A small project whose version 1 is ingested."""
    made = ingested_once.copy(tmp_path)
    yield made
    made.forget()


@pytest.fixture
def indexed(tmp_path: Path, indexed_once: TinyProject) -> Iterator[TinyProject]:
    """A small project whose version 1 is ingested and indexed."""
    made = indexed_once.copy(tmp_path)
    yield made
    made.forget()
