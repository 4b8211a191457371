"""Watching the registry: which model versions still have to be ingested, indexed or calibrated."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from gradtrail.lineage.read import queries
from gradtrail.lineage.read.measuring_adapters import own_fidelities, own_indexes
from gradtrail.storage.files.atomic import write_atomically
from gradtrail.storage.models.registry import RegisteredVersion
from gradtrail.tasks.core.watched import WatchedModel
from gradtrail.tasks.core.workspace import Workspace

SOURCE = "registry"
ATTEMPTS = "watch.json"
FIRST_PAUSE = timedelta(minutes=2)
LONGEST_PAUSE = timedelta(days=1)


@dataclass(frozen=True)
class Preparation:
    """A model version and what it still lacks before it can be audited as configured."""

    model_version_id: str
    ingest: bool
    index: bool
    calibrate: bool

    @property
    def anything(self) -> bool:
        """Whether there is something to do."""
        return self.ingest or self.index or self.calibrate


def unprepared(workspace: Workspace, model: WatchedModel) -> list[Preparation]:
    """The registered versions of a model that lack something, oldest first.

    A version that failed is left alone for a while, twice as long after each failure, and does not stop the others.

    Raises:
        NotFoundError: the model or alias does not exist.
    """
    registry = workspace.registry()
    named = registry.resolve(model.reference)
    versions = [named] if model.reference.startswith(f"{named.name}@") else registry.versions(named.name)
    resting = _resting(workspace)
    lacking = (_lacks(workspace, version, model.calibrate) for version in versions)
    return [
        each
        for each in lacking
        if (each.ingest or each.index or each.calibrate) and each.model_version_id not in resting
    ]


def note_failure(workspace: Workspace, model_version_id: str, cause: str) -> None:
    """Quarantine a model version that cannot be prepared, with the cause, and let it rest."""
    if workspace.ledger().paths.database.is_file():
        workspace.ledger().record_quarantine(SOURCE, model_version_id, cause)
    attempts = _attempts(workspace)
    failures = int(attempts.get(model_version_id, {}).get("failures", 0)) + 1
    pause = min(FIRST_PAUSE * 2 ** min(failures - 1, 30), LONGEST_PAUSE)
    attempts[model_version_id] = {"failures": failures, "rests_until": (datetime.now(UTC) + pause).isoformat()}
    _keep(workspace, attempts)


def note_success(workspace: Workspace, model_version_id: str) -> None:
    """Forget earlier failures of a model version."""
    attempts = _attempts(workspace)
    if attempts.pop(model_version_id, None) is not None:
        _keep(workspace, attempts)


def _lacks(workspace: Workspace, version: RegisteredVersion, calibrate: bool) -> Preparation:
    ledger = workspace.ledger()
    if not ledger.paths.database.is_file():
        return Preparation(version.model_version_id, ingest=True, index=True, calibrate=calibrate)
    with ledger.read() as connection:
        recorded = queries.model_version(connection, version.model_version_id)
        if recorded is None:
            return Preparation(version.model_version_id, ingest=True, index=True, calibrate=calibrate)
        return Preparation(
            version.model_version_id,
            ingest=False,
            index=not own_indexes(connection, recorded),
            calibrate=calibrate and not own_fidelities(connection, recorded),
        )


def _resting(workspace: Workspace) -> set[str]:
    now = datetime.now(UTC)
    return {name for name, known in _attempts(workspace).items() if datetime.fromisoformat(known["rests_until"]) > now}


def _attempts(workspace: Workspace) -> dict[str, Any]:
    path = workspace.root / ATTEMPTS
    return dict(json.loads(path.read_text("utf-8"))) if path.is_file() else {}


def _keep(workspace: Workspace, attempts: dict[str, Any]) -> None:
    write_atomically(workspace.root / ATTEMPTS, json.dumps(attempts, indent=2).encode())
