"""Looking after models without anybody at the keyboard: one process here, or deployments on a Prefect work pool.

Both come from the same settings: `[[models]]` says which models, how often they are audited and by which method.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml

from gradtrail.digests import sha256_json
from gradtrail.errors import GradtrailError, UsageError
from gradtrail.session import quiet_libraries
from gradtrail.settings import FILE_VARIABLE, PREFIX, Settings, settings_file
from gradtrail.storage.files.exclusive import holding
from gradtrail.tasks.core.watched import WatchedModel

SERVER_START_SECONDS = 120
POOL = "gradtrail"
SERVER_RETENTION = {
    "PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED": "events,flow_runs",
    "PREFECT_SERVER_SERVICES_DB_VACUUM_RETENTION_PERIOD": str(14 * 24 * 60 * 60),
}
"""What keeps a Prefect server small: by itself it never forgets a run, and one model makes 1,500 a day."""
WATCH_ENTRYPOINT = "gradtrail.served:watch"
AUDIT_ENTRYPOINT = "gradtrail.served:audit"
AUTHENTICATION_FILE = "authentication"
"""Beside the log of a server of its own: what its API asks for, as `user:password`, for its owner alone to read."""


@dataclass(frozen=True)
class Deployment:
    """One scheduled flow: what runs, when, and with which parameters, which are names of models in the settings."""

    name: str
    entrypoint: str
    parameters: dict[str, Any]
    cron: str = ""
    time_zone: str = "UTC"
    interval_seconds: int = 0


def deployments(settings: Settings) -> list[Deployment]:
    """The flows that look after the models of the settings.

    Raises:
        UsageError: the settings name no model, or one of them twice.
    """
    if not settings.models:
        raise UsageError(
            "The settings name no model to look after.",
            'Add to gradtrail.toml: [[models]] and below it reference = "NAME@alias".',
        )
    named = Counter((model.reference, model.target, model.method) for model in settings.models)
    if twice := [reference for (reference, _, _), count in named.items() if count > 1]:
        raise UsageError(
            f"The settings name {', '.join(twice)} twice with the same target and method.",
            "Leave one of the [[models]] tables out.",
        )
    watch = Deployment("watch", WATCH_ENTRYPOINT, {}, interval_seconds=settings.watch_seconds)
    shared = Counter(_slug(model.reference) for model in settings.models)
    return [watch, *(_audit(model, shared[_slug(model.reference)] == 1) for model in settings.models)]


def prefect_file(settings: Settings, pool: str = POOL) -> str:
    """The same as the text of a `prefect.yaml` for a work pool of that name."""
    described = [
        {
            "name": each.name,
            "entrypoint": each.entrypoint,
            "work_pool": {"name": pool},
            # A run that overlaps another has nothing to add: every run drains all that is unseen.
            "concurrency_limit": {"limit": 1, "collision_strategy": "CANCEL_NEW"},
            "parameters": each.parameters,
            "schedules": [
                {"cron": each.cron, "timezone": each.time_zone} if each.cron else {"interval": each.interval_seconds}
            ],
        }
        for each in deployments(settings)
    ]
    return str(yaml.safe_dump({"name": "gradtrail", "deployments": described}, sort_keys=False))


def serve(settings: Settings, *, limit: int = 2) -> None:
    """Run the schedules in this process until it is stopped; brings its own Prefect server where there is none.

    Args:
        settings: the models, and where everything lives.
        limit: flow runs at one time.

    Raises:
        UsageError: the settings name no model.
        GradtrailError: no Prefect server could be started.
    """
    planned = deployments(settings)
    with prefect_server(settings):
        import prefect
        from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy
        from prefect.deployments.runner import RunnerDeployment
        from prefect.schedules import Cron

        from gradtrail.storage.process_memory import HUGE_PAGES

        # Each flow run is a process, which inherits this.
        for name, value in HUGE_PAGES.items():
            os.environ.setdefault(name, value)
        # Runs take all but names from the settings of this host.
        os.environ[FILE_VARIABLE] = str(settings_file().resolve())
        os.environ[f"{PREFIX}HOME"] = str(settings.home.resolve())
        alone = ConcurrencyLimitConfig(limit=1, collision_strategy=ConcurrencyLimitStrategy.CANCEL_NEW)
        served = [
            RunnerDeployment.from_entrypoint(
                each.entrypoint,
                name=each.name,
                parameters=each.parameters,
                schedule=Cron(each.cron, timezone=each.time_zone) if each.cron else None,
                interval=each.interval_seconds or None,
                concurrency_limit=alone,
            )
            for each in planned
        ]
        prefect.serve(*served, limit=limit, print_starting_message=False)


@contextmanager
def prefect_server(settings: Settings) -> Iterator[str]:
    """The address of the Prefect API: that of `PREFECT_API_URL`, else of a server started under the home folder.

    Raises:
        GradtrailError: the server did not answer in time, with its last words; or another process has one there.
    """
    quiet_libraries()
    if configured := os.environ.get("PREFECT_API_URL"):
        yield configured
        return
    home = settings.home.resolve() / "prefect"
    busy = GradtrailError(
        f"Another process looks after the models of {settings.home} already.",
        "Stop it first, or set PREFECT_API_URL to one Prefect server for both.",
    )
    with holding(home / "serving.lock", busy=busy), _own_server(home) as address:
        _release_leftovers(address)
        yield address


@contextmanager
def _own_server(home: Path) -> Iterator[str]:
    port = _free_port()
    address = f"http://127.0.0.1:{port}/api"
    os.environ["PREFECT_HOME"], os.environ["PREFECT_API_URL"] = str(home), address
    authentication = os.environ.get("PREFECT_SERVER_API_AUTH_STRING") or f"gradtrail:{secrets.token_urlsafe(32)}"
    os.environ["PREFECT_API_AUTH_STRING"] = authentication
    _write_for_owner(home / AUTHENTICATION_FILE, authentication)
    log = home / "server.log"
    with log.open("wb") as stream:
        command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
        if setpriv := shutil.which("setpriv"):  # of Linux: the server ends with this process even where that is killed
            command = [setpriv, "--pdeathsig", "TERM", *command]
        environment = SERVER_RETENTION | os.environ
        environment["PREFECT_SERVER_API_AUTH_STRING"] = authentication
        environment.setdefault("PREFECT_SERVER_CORS_ALLOWED_ORIGINS", address.removesuffix("/api"))
        process = subprocess.Popen(command, stdout=stream, stderr=stream, env=environment)  # noqa: S603 - our own words
        try:
            _wait(process, address)
            yield address
        except TimeoutError as fault:
            said = log.read_text("utf-8", errors="replace").strip().splitlines()[-1:]
            raise GradtrailError(
                f"The Prefect server did not start within {SERVER_START_SECONDS} s: {' '.join(said)}",
                f"Look into {log}, or set PREFECT_API_URL to a server that runs.",
            ) from fault
        finally:
            del os.environ["PREFECT_API_URL"], os.environ["PREFECT_API_AUTH_STRING"]
            process.terminate()
            process.wait()


def _release_leftovers(address: str) -> None:
    """Give up the runs that ended with the server before: each would hold the one place of its deployment for good."""
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.filters import (
        FlowRunFilter,
        FlowRunFilterDeploymentId,
        FlowRunFilterState,
        FlowRunFilterStateType,
    )
    from prefect.client.schemas.objects import State, StateType
    from prefect.states import Crashed

    at_work = FlowRunFilterStateType(any_=[StateType.PENDING, StateType.RUNNING, StateType.CANCELLING])
    scheduled = FlowRunFilter(
        state=FlowRunFilterState(type=at_work), deployment_id=FlowRunFilterDeploymentId(is_null_=False)
    )
    with SyncPrefectClient(address, auth_string=os.environ.get("PREFECT_API_AUTH_STRING")) as client:
        for run in client.read_flow_runs(flow_run_filter=scheduled):
            ended: State[Any] = Crashed(
                message="gradtrail serve ended while this ran; the next run goes on from there."
            )
            client.set_flow_run_state(run.id, ended, force=True)


def _audit(model: WatchedModel, alone: bool) -> Deployment:
    parameters = {"reference": model.reference, "target": model.target, "method": model.method}
    name = f"audit-{_slug(model.reference)}"
    # Prefect knows a deployment by its name: two models of one name would be one.
    if not alone or name == "audit-":
        name += f"-{sha256_json([model.reference, model.target, model.method])[:8]}"
    return Deployment(name, AUDIT_ENTRYPOINT, parameters, cron=model.audit, time_zone=model.time_zone)


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def _write_for_owner(path: Path, text: str) -> None:
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as stream:
        stream.write(text)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait(process: subprocess.Popen[bytes], address: str) -> None:
    deadline = time.monotonic() + SERVER_START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if httpx.get(f"{address}/health", timeout=2).is_success:
                return
        except httpx.TransportError:
            time.sleep(0.2)
    raise TimeoutError
