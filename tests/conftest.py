"""Fixtures of the whole house: a real Chromium, a Prefect server, the demo run once, a user's small project."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service

if TYPE_CHECKING:
    from xdist.remote import Producer
    from xdist.scheduler import LoadFileScheduling

    from gradtrail.attribution.adapters.base import ModelAdapter
    from gradtrail.settings import Settings
    from gradtrail.storage.models.registry import RegisteredVersion
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


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadFileScheduling | None:
    """`--dist loadfile`, with all files that read the demo as one: making it takes long, so that one worker does it."""
    if config.getvalue("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    files = Path(__file__).parent.rglob("test_*.py")
    asking = [path for path in files if re.search(r"^def \w+\(.*\bdemo\b", path.read_text("utf-8"), re.MULTILINE)]
    with_demo = {path.relative_to(config.rootpath).as_posix() for path in asking}

    class OneDemo(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return "demo" if file in with_demo else file

    return OneDemo(config, log)


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


@pytest.fixture(scope="session")
def prefect_server() -> Iterator[None]:
    """One real Prefect server for the session's flows, without the heartbeat whose end a flow waits a second for."""
    from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings
    from prefect.testing.utilities import prefect_test_harness

    with (
        prefect_test_harness(server_startup_timeout=120),
        temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}),
    ):
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
        run_demo(settings, calibration_seeds=2)
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


@pytest.fixture
def tiny(tmp_path: Path, migrated_mlflow: Path) -> TinyProject:
    """A small project of a user, nothing registered yet."""
    return TinyProject(tmp_path, migrated_mlflow)


@pytest.fixture(scope="session")
def tiny_project() -> type[TinyProject]:
    """For fixtures that outlive one test: makes small projects in folders of their own."""
    return TinyProject
