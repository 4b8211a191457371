"""The report index and comparisons: pages over many audits, built from the ledger alone whenever an audit is added."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from prefect import task

from gradtrail.addresses import COMPARISONS, INDEX_PAGE, REPORT_PAGE
from gradtrail.digests import short
from gradtrail.errors import UsageError
from gradtrail.lineage import queries
from gradtrail.lineage.audit_history import PastAudit, findings_of
from gradtrail.lineage.comparisons import compare_audits
from gradtrail.reports.compare_page import compare_page
from gradtrail.reports.index_model import IndexedAudit
from gradtrail.reports.index_page import index_page
from gradtrail.storage.atomic import write_atomically
from gradtrail.storage.audit_runs import AuditRun, Links, annotate, find_audit_run, open_index_run, upload_files
from gradtrail.storage.registry import Registry
from gradtrail.tasks.history import audit_history
from gradtrail.tasks.retrying import WITH_RETRIES
from gradtrail.tasks.workspace import Workspace


@task(**WITH_RETRIES)
def publish_report_index(workspace: Workspace) -> str:
    """Write the index beside the reports and a copy into MLflow; returns the path of the page.

    The page beside the reports leads to them by relative addresses, so that the folder can be published as it is; the
    copy, which MLflow shows by itself, by whole ones.
    """
    registry = workspace.registry()
    run, current = open_index_run(registry), False
    while not current:
        history = _history(workspace)
        path = _publish(workspace, registry, run, history)
        # Another flow may have recorded an audit since; whoever writes last has to have seen it.
        current = _history_ends_with(workspace, history)
    annotate(registry, run, f"## All audits\n\n[Open the index]({workspace.links().index(run)})")
    return str(path)


def _publish(workspace: Workspace, registry: Registry, index_run: AuditRun, history: Sequence[IndexedAudit]) -> Path:
    links, runs = workspace.links(), _recorded_runs(history)
    for audit_id in {audit.past.audit_id for audit in history} - runs.keys():
        if found := find_audit_run(registry, audit_id):
            runs[audit_id] = found

    def address(past: PastAudit) -> str:
        return links.report(past.audit_id, runs[past.audit_id]) if past.audit_id in runs else ""

    with TemporaryDirectory(prefix="gradtrail-index-") as folder:
        copy = Path(folder) / INDEX_PAGE
        copy.write_text(index_page(_addressed(history, links, runs, address)), encoding="utf-8")
        upload_files(registry, index_run.run_id, [copy])
    return _write(workspace, history, runs)


def write_report_index(workspace: Workspace) -> Path:
    """Write the index beside the reports, whole or not at all; returns its path.

    Raises:
        NotFoundError: there is no ledger yet.
    """
    history = _history(workspace)
    return _write(workspace, history, _recorded_runs(history))


def write_comparison(workspace: Workspace, a: str, b: str) -> Path:
    """Write a page that puts two audits side by side, the earlier first; ids may be cut short.

    Raises:
        NotFoundError: there is no such audit.
        UsageError: more than one audit begins so, or both are the same.
    """
    with workspace.ledger().read() as connection:
        comparison = compare_audits(connection, a, b)
        if comparison.a == comparison.b:
            raise UsageError(f"Both {a} and {b} are audit {short(comparison.a)}.", "Name two audits.")
        by_id = {audit.past.audit_id: audit for audit in audit_history(connection)}
        first, second = by_id[comparison.a], by_id[comparison.b]
        if second.past.event_sequence < first.past.event_sequence:
            first, second = second, first
            comparison = compare_audits(connection, first.past.audit_id, second.past.audit_id)
        found = findings_of(connection, first.past.audit_id)
        later_found = findings_of(connection, second.past.audit_id)
    first, second = (replace(each, report=f"../{each.past.audit_id}/{REPORT_PAGE}") for each in (first, second))
    page = compare_page(first, second, comparison.lines, found, later_found)
    name = f"{short(first.past.audit_id)}-{short(second.past.audit_id)}.html"
    path = workspace.reports / COMPARISONS / name
    write_atomically(path, page.encode("utf-8"))
    return path


def _history(workspace: Workspace) -> list[IndexedAudit]:
    with workspace.ledger().read() as connection:
        return audit_history(connection)


def _history_ends_with(workspace: Workspace, history: Sequence[IndexedAudit]) -> bool:
    with workspace.ledger().read() as connection:
        newest = queries.latest_audit(connection)
    return newest is None or newest.audit_id == history[-1].past.audit_id


def _write(workspace: Workspace, history: Sequence[IndexedAudit], runs: Mapping[str, AuditRun]) -> Path:
    path = workspace.reports / INDEX_PAGE
    audits = _addressed(history, workspace.links(), runs, lambda past: f"{past.audit_id}/{REPORT_PAGE}")
    write_atomically(path, index_page(audits).encode("utf-8"))
    return path


def _recorded_runs(history: Sequence[IndexedAudit]) -> dict[str, AuditRun]:
    """The MLflow run of each audit whose report is recorded."""
    return {
        audit.past.audit_id: AuditRun(audit.past.audit_run_id, audit.past.audit_experiment_id)
        for audit in history
        if audit.past.reported
    }


def _addressed(
    history: Sequence[IndexedAudit],
    links: Links,
    runs: Mapping[str, AuditRun],
    report: Callable[[PastAudit], str],
) -> list[IndexedAudit]:
    return [
        replace(audit, report=report(audit.past), links=_links(audit.past, links, runs.get(audit.past.audit_id)))
        for audit in history
    ]


def _links(past: PastAudit, links: Links, run: AuditRun | None) -> dict[str, str]:
    found = {"model": links.model(past.model), "model version": links.model_version(past.model, past.version)}
    if past.run_experiment_id:
        found["training run"] = links.run(past.run_experiment_id, past.run_id)
    if run:
        found["audit run"] = links.run(run.experiment_id, run.run_id)
    return found
