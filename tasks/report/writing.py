"""Reports: written from the ledger alone, so that an interrupted audit's report can be completed at any time."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from gradtrail.digests import sha256_file
from gradtrail.errors import NotFoundError
from gradtrail.lineage.events.revisions import record_revision
from gradtrail.lineage.read import queries
from gradtrail.lineage.verify.signatures import sign_audit
from gradtrail.reports.write import HTML_NAME, write_report
from gradtrail.storage.models.audit_runs import upload_files
from gradtrail.tasks.core.workspace import Workspace
from gradtrail.tasks.report.building import build_report
from gradtrail.tasks.report.reported_audits import ShownAudit, reported_audit


@dataclass(frozen=True)
class FoundReport:
    """A report on disk, and its page in MLflow (empty before it is linked)."""

    audit_id: str
    html: str
    mlflow_url: str
    rewritten: bool


def write_audit_report(shown: ShownAudit) -> str:
    """Sign the audit where a key is set, then write HTML, JSON and Parquet; returns the path of the HTML file."""
    workspace = shown.workspace
    if workspace.signing_key:
        sign_audit(workspace.ledger(), shown.audit_id, Path(workspace.signing_key))
    return str(write_report(build_report(workspace, shown.recorded), workspace.reports).html)


def ensure_report(workspace: Workspace, audit_id: str) -> FoundReport:
    """Find an audit's report, by id, beginning of an id, or the newest; write it again if its file is gone.

    Raises:
        NotFoundError: if there is no such audit, or none at all.
    """
    with workspace.ledger().read() as connection:
        if audit_id:
            kind, audit_id = queries.resolve(connection, audit_id)
            if kind != "audit":
                raise NotFoundError(f"{audit_id} is a {kind.replace('_', ' ')}, not an audit.", "Give an audit's id.")
        elif latest := queries.latest_audit(connection):
            audit_id = latest.audit_id
        else:
            raise NotFoundError("There is no audit yet.", "Run one: gradtrail audit NAME@alias, or gradtrail demo.")
        report = queries.report_of(connection, audit_id)
    path = workspace.reports / audit_id / HTML_NAME
    rewritten = not path.is_file() or (report is not None and sha256_file(path) != report.html_sha256)
    if rewritten:
        path = rewrite_report(workspace, audit_id, "its file was gone or changed")
    url = ""
    if report is not None and report.mlflow_run_id and report.mlflow_experiment_id:
        links = workspace.links()
        url = links.artifact(report.mlflow_experiment_id, report.mlflow_run_id, HTML_NAME)
    return FoundReport(audit_id, str(path), url, rewritten)


def rewrite_report(workspace: Workspace, audit_id: str, reason: str) -> Path:
    """Write a report again from what the ledger holds now; where that gives other bytes, in MLflow too and recorded."""
    files = write_report(build_report(workspace, reported_audit(workspace, audit_id)), workspace.reports)
    with workspace.ledger().read() as connection:
        report = queries.report_of(connection, audit_id)
    if report is not None and {HTML_NAME: report.html_sha256, **report.file_sha256} != files.sha256:
        if report.mlflow_run_id:
            upload_files(workspace.registry(), report.mlflow_run_id, [files.html, files.json, files.parquet])
        record_revision(workspace.ledger(), "report", audit_id, files.sha256, reason)
    return files.html
