"""Verify: the ledger against its own history, and every file against the digest the ledger recorded."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from gradtrail.digests import sha256_file, short
from gradtrail.errors import GradtrailError
from gradtrail.lineage import listings
from gradtrail.lineage.verify import Problem, verify_ledger
from gradtrail.tasks.progress import progress_bar
from gradtrail.tasks.workspace import Workspace


@dataclass(frozen=True)
class Verification:
    """How many things of each kind were checked, and what was wrong, in order of checking."""

    checked: dict[str, int]
    problems: tuple[Problem, ...]


def verify_workspace(workspace: Workspace) -> Verification:
    """Check ledger, manifests, checkpoints, indexes, payloads and reports. Reads everything, changes nothing."""
    ledger_report = verify_ledger(workspace.ledger())
    checked = dict(ledger_report.checked)
    problems = list(ledger_report.problems)
    if problems:
        return Verification(checked, tuple(problems))
    checks: tuple[tuple[str, Callable[[Workspace], Iterator[Problem | None]]], ...] = (
        ("manifests", _manifests),
        ("checkpoints", _checkpoints),
        ("indexes", _indexes),
        ("payloads", _payloads),
        ("report files", _reports),
    )
    with progress_bar("verifying", len(checks)) as bar:
        for name, check in checks:
            outcomes = list(check(workspace))
            checked[name] = len(outcomes)
            problems += [outcome for outcome in outcomes if outcome is not None]
            bar.advance(1)
    return Verification(checked, tuple(problems))


def _manifests(workspace: Workspace) -> Iterator[Problem | None]:
    with workspace.ledger().read() as connection:
        datasets = listings.dataset_versions(connection)
    for dataset in datasets:
        yield _file("manifest", dataset.dataset_version_id, Path(dataset.manifest_uri), dataset.dataset_version_id)


def _checkpoints(workspace: Workspace) -> Iterator[Problem | None]:
    with workspace.ledger().read() as connection:
        checkpoints = listings.checkpoints(connection)
    for checkpoint in checkpoints:
        yield _file("checkpoint", checkpoint.checkpoint_id, Path(checkpoint.weights_uri), checkpoint.weights_sha256)


def _indexes(workspace: Workspace) -> Iterator[Problem | None]:
    with workspace.ledger().read() as connection:
        indexes = listings.indexes(connection)
    store = workspace.gradients()
    for index in indexes:
        try:
            table = store.existing(index.index_id)
            seal = table.seal_record() if table is not None else None
            found = table.verify() if table is not None else ["its table is gone"]
            if seal is not None and (seal.version, seal.rows_sha256) != (index.table_version, index.rows_sha256):
                found.append("its seal is not the one that the ledger recorded")
        except GradtrailError as error:
            found = [str(error)]
        yield Problem("index", index.index_id, "; ".join(found)) if found else None


def _payloads(workspace: Workspace) -> Iterator[Problem | None]:
    with workspace.ledger().read() as connection:
        outputs = listings.payloads_by_output(connection)
    payloads = workspace.payloads()
    for output_id, payload_sha256 in outputs.items():
        try:
            payloads.get(payload_sha256)
        except GradtrailError as error:
            yield Problem("payload", output_id, str(error))
        else:
            yield None


def _reports(workspace: Workspace) -> Iterator[Problem | None]:
    with workspace.ledger().read() as connection:
        reports = listings.reports(connection)
    for report in reports:
        folder = Path(report.html_uri).parent
        for name, sha256 in {Path(report.html_uri).name: report.html_sha256, **report.file_sha256}.items():
            yield _file("report", f"{short(report.audit_id)}/{name}", folder / name, sha256)


def _file(kind: str, subject: str, path: Path, expected_sha256: str) -> Problem | None:
    if not path.is_file():
        return Problem(kind, subject, f"the file {path} is gone")
    found = sha256_file(path)
    if found != expected_sha256:
        return Problem(kind, subject, f"the file {path} was changed: sha256 {found}, recorded {expected_sha256}")
    return None
