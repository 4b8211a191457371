"""What was put elsewhere, against the ledger: runs of audits in MLflow with tags and files, and the reports' folder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from mlflow.exceptions import MlflowException

from gradtrail.addresses import COMPARISONS
from gradtrail.digests import sha256_file, short
from gradtrail.errors import NotFoundError, StoreError
from gradtrail.lineage.chain.proofs import audit_evidence
from gradtrail.lineage.chain.row_check import Problem
from gradtrail.lineage.read import listings
from gradtrail.lineage.read.answers import RecordedReport
from gradtrail.lineage.read.pinned_files import kept_digests
from gradtrail.lineage.verify.signatures import signature_of
from gradtrail.storage.models.audit_runs import AUDIT_TAG, LATEST_AUDIT_TAG, uploaded_names
from gradtrail.storage.models.registry import Registry
from gradtrail.tasks.core.workspace import Workspace

_FILE = "sqlite:///"
AWAY = "away"
"""Kind of the one outcome that is no problem but a note: MLflow does not answer."""


@dataclass(frozen=True)
class _Copy:
    """What MLflow must hold of an audit whose report was put there."""

    report: RecordedReport
    tags: Mapping[str, str]

    @property
    def subject(self) -> str:
        return f"audit {short(self.report.audit_id)} in MLflow"

    @property
    def files(self) -> dict[str, str]:
        return {Path(self.report.html_uri).name: self.report.html_sha256, **self.report.file_sha256}


def mlflow_copies(workspace: Workspace) -> Iterator[Problem | None]:
    """Each audit's run in MLflow: whether it is there, its tags and report files; and what versions call their newest.

    Where MLflow does not answer, one outcome of kind AWAY says so, and nothing is compared.
    """
    with workspace.ledger().read() as connection:
        copies = []
        for report in listings.reports(connection):
            if report.mlflow_run_id:
                evidence = audit_evidence(connection, report.audit_id)
                signature = signature_of(connection, report.audit_id)
                tags = {
                    AUDIT_TAG: report.audit_id,
                    "gradtrail.audit_root": evidence.audit_root,
                    "gradtrail.event_hash": evidence.event_hash,
                }
                if signature is not None:
                    tags["gradtrail.signature"] = signature.signature
                copies.append(_Copy(report, tags))
        versions: dict[str, list[str]] = {}
        query = "SELECT model_version_id, audit_id FROM audit ORDER BY event_sequence"
        for model_version_id, audit_id in connection.execute(query).fetchall():
            versions.setdefault(model_version_id, []).append(audit_id)
    if not copies:
        return
    if workspace.tracking_uri.startswith(_FILE) and not Path(workspace.tracking_uri.removeprefix(_FILE)).is_file():
        # Asking would create it.
        yield Problem(AWAY, "MLflow", "its database is not there, so that tags and copies are not compared")
        return
    try:
        registry = workspace.registry()
        for copy in copies:
            yield from _run(registry, copy)
        for model_version_id, audit_ids in versions.items():
            yield from _newest(registry, model_version_id, audit_ids)
    except (StoreError, MlflowException, OSError) as error:
        said = str(error).split("\n", 1)[0]
        yield Problem(AWAY, "MLflow", f"it cannot be asked, so that its tags and copies are not compared: {said}")


def _run(registry: Registry, copy: _Copy) -> Iterator[Problem | None]:
    run = registry.active_run(str(copy.report.mlflow_run_id))
    if run is None:
        yield Problem("mlflow", copy.subject, f"its run {copy.report.mlflow_run_id} is gone or was deleted")
        return
    for name, value in copy.tags.items():
        found = run.data.tags.get(name)
        message = f"its tag {name} is {'gone' if found is None else 'not what the ledger recorded'}"
        yield None if found == value else Problem("mlflow", copy.subject, message)
    there = uploaded_names(registry, run.info.run_id)
    with TemporaryDirectory(prefix="gradtrail-verify-") as folder:
        for name, sha256 in copy.files.items():
            if name not in there:
                yield Problem("mlflow", copy.subject, f"its copy of {name} is gone")
                continue
            fetched = Path(registry.client.download_artifacts(run.info.run_id, name, folder))
            message = f"its copy of {name} was changed"
            yield None if sha256_file(fetched) == sha256 else Problem("mlflow", copy.subject, message)
            fetched.unlink()


def _newest(registry: Registry, model_version_id: str, audit_ids: list[str]) -> Iterator[Problem | None]:
    """A version that was deleted, or has no such tag yet, says nothing; what it says is an audit of its own."""
    try:
        said = registry.resolve(model_version_id).tags.get(LATEST_AUDIT_TAG)
    except NotFoundError:
        return
    if said is not None:
        message = f"its tag {LATEST_AUDIT_TAG} names no audit of this version"
        yield None if said in audit_ids else Problem("mlflow", f"{model_version_id} in MLflow", message)


def extra_files(workspace: Workspace) -> Iterator[Problem | None]:
    """Files among the reports that nothing recorded; hidden ones, which a write that was cut short leaves, aside."""
    with workspace.ledger().read() as connection:
        reports = listings.reports(connection)
        kept = kept_digests(connection)
    for report in reports:
        html = Path(report.html_uri)
        known = {html.name, *report.file_sha256}
        yield from map(partial(_extra, short(report.audit_id)), _beyond(html.parent, known))
    pages = {Path(name).name for name in kept if name.startswith(f"{workspace.reports.name}/")}
    folders = {path.name for path in workspace.reports.glob("*") if path.is_dir() and not path.is_symlink()}
    # A report that was written and not recorded yet is in a folder of its own.
    if pages:
        beyond = _beyond(workspace.reports, {*pages, *folders, COMPARISONS})
        yield from map(partial(_extra, workspace.reports.name), beyond)


def _beyond(folder: Path, known: set[str]) -> list[str]:
    return sorted(each.name for each in folder.glob("*") if each.name not in known and not each.name.startswith("."))


def _extra(place: str, name: str) -> Problem:
    return Problem("report", f"{place}/{name}", "gradtrail wrote no such file there")
