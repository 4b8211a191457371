"""`gradtrail doctor`: is this installation fit to work?"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement

from gradtrail.errors import GradtrailError
from gradtrail.secret_addresses import without_secrets
from gradtrail.settings import Settings, settings_file

_ENOUGH_FREE_BYTES = 1 << 30


@dataclass(frozen=True)
class Examination:
    """One thing looked at: `ok`, a `note` that may matter, or a `fault` that will stop work."""

    status: Literal["ok", "note", "fault"]
    what: str
    found: str


def examine(settings: Settings) -> list[Examination]:
    """Look at Python, packages, folders, MLflow, the ledger and Prefect; changes nothing but empty folders."""
    return [
        Examination("ok", "python", sys.version.split()[0]),
        *_packages(),
        _settings_file(),
        *_home(settings.home),
        _mlflow(settings),
        _ledger(settings),
        _prefect(),
        _accelerator(),
    ]


def _packages() -> Iterator[Examination]:
    for text in requires("gradtrail") or []:
        requirement = Requirement(text)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            installed = version(requirement.name)
        except PackageNotFoundError:
            yield Examination("fault", requirement.name, f"not installed; needed: {requirement}")
            continue
        fits = requirement.specifier.contains(installed, prereleases=True)
        found = installed if fits else f"{installed} is installed, but {requirement} is needed"
        yield Examination("ok" if fits else "fault", requirement.name, found)


def _settings_file() -> Examination:
    if settings_file().is_file():
        return Examination("ok", "settings", f"{settings_file()} read")
    return Examination("ok", "settings", f"no {settings_file()} here: defaults and GRADTRAIL_* variables")


def _home(home: Path) -> Iterator[Examination]:
    folder = home.resolve()
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    writable = os.access(existing, os.W_OK)
    yield Examination("ok" if writable else "fault", "home folder", f"{folder}{'' if writable else ' is not writable'}")
    free = shutil.disk_usage(existing).free
    yield Examination("ok" if free >= _ENOUGH_FREE_BYTES else "note", "free disk", f"{free / 2**30:.1f} GiB")


def _mlflow(settings: Settings) -> Examination:
    workspace = settings.workspace()
    path = workspace.tracking_uri.removeprefix("sqlite:///")
    shown = without_secrets(settings.mlflow_tracking_uri or workspace.tracking_uri)
    if workspace.tracking_uri.startswith("sqlite:///") and not Path(path).exists():
        return Examination("ok", "mlflow", f"{shown}: made on first use")
    from mlflow.exceptions import MlflowException

    try:
        count = len(workspace.registry().client.search_registered_models())
    except (MlflowException, OSError) as error:
        return Examination("fault", "mlflow", without_secrets(f"{shown} does not answer: {error}"))
    except GradtrailError as error:
        return Examination("fault", "mlflow", str(error))
    return Examination("ok", "mlflow", f"{shown}: {count} registered models")


def _ledger(settings: Settings) -> Examination:
    ledger = settings.workspace().ledger()
    if not ledger.paths.database.exists():
        return Examination("ok", "ledger", "empty: made on first use")
    try:
        with ledger.read() as connection:
            events = connection.execute("SELECT count(*) FROM event").fetchall()[0][0]
    except GradtrailError as error:
        return Examination("fault", "ledger", str(error))
    return Examination("ok", "ledger", f"{ledger.paths.database}: {events} events")


def _prefect() -> Examination:
    url = os.environ.get("PREFECT_API_URL")
    found = f"server {without_secrets(url)}" if url else f"embedded in {os.environ.get('PREFECT_HOME')}"
    return Examination("ok", "prefect", found)


def _accelerator() -> Examination:
    import torch

    if torch.cuda.is_available():
        return Examination("ok", "device", f"cuda: {torch.cuda.get_device_name()}")
    if torch.backends.mps.is_available():
        return Examination("ok", "device", "mps")
    return Examination("ok", "device", f"cpu, {torch.get_num_threads()} threads")
