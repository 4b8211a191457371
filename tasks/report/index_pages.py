"""The report index and comparisons: pages over many audits, built from the ledger alone whenever an audit is added."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from gradtrail.addresses import COMPARISONS, INDEX_PAGE, REPORT_PAGE
from gradtrail.digests import short
from gradtrail.errors import UsageError
from gradtrail.lineage.read.audit_history import NumberedAudit, PastAudit, findings_of, numbered_audits
from gradtrail.lineage.read.comparisons import compare_audits
from gradtrail.reports.index.comparison import compare_page
from gradtrail.reports.index.model import IndexedAudit
from gradtrail.reports.index.page import index_page
from gradtrail.reports.index.parts import AUDITS_A_PART, IndexPart, index_parts
from gradtrail.storage.files.atomic import write_atomically
from gradtrail.storage.models.audit_runs import (
    AuditRun,
    Links,
    annotate,
    find_audit_run,
    open_index_run,
    upload_files,
    uploaded_names,
)
from gradtrail.storage.models.registry import Registry
from gradtrail.tasks.core.kept_files import write_kept
from gradtrail.tasks.core.workspace import Workspace
from gradtrail.tasks.report.history import audit_history
from gradtrail.tasks.report.reported_audits import ShownAudit


def publish_report_index(
    workspace: Workspace, audits_a_part: int = AUDITS_A_PART, shown: ShownAudit | None = None
) -> str:
    """Write the index beside the reports and a copy into MLflow; returns the path of the page.

    The page beside the reports leads to them by relative addresses, so that the folder can be published as it is; the
    copy, which MLflow shows by itself, by whole ones. Pages of older audits are written once, and again where one is
    gone.
    """
    registry = shown.registry if shown else workspace.registry()
    run, current = shown.recorded.index_run if shown else open_index_run(registry), False
    known = {shown.audit_id: shown.recorded.audit_run} if shown else {}
    while not current:
        with workspace.ledger().read() as connection:
            places = numbered_audits(connection)
            older, newest = index_parts(places, audits_a_part)
            history = audit_history(connection, audit_ids=newest.audit_ids)
        path = _publish(workspace, registry, run, older, newest, history, known)
        # Another flow may have recorded an audit since; whoever writes last has to have seen it.
        current = _places(workspace)[-1:] == places[-1:]
    annotate(registry, run, f"## All audits\n\n[Open the index]({workspace.links().index(run)})")
    return str(path)


def _publish(
    workspace: Workspace,
    registry: Registry,
    index_run: AuditRun,
    older: Sequence[IndexPart],
    newest: IndexPart,
    newest_history: Sequence[IndexedAudit],
    known: Mapping[str, AuditRun],
) -> Path:
    links, uploaded = workspace.links(), uploaded_names(registry, index_run.run_id)
    missing = [part for part in older if part.name not in uploaded or not (workspace.reports / part.name).is_file()]
    # The index comes last: what it leads to is there already.
    for part in (*missing, newest):
        history = newest_history if part is newest else _history(workspace, part)
        runs = {**known, **_recorded_runs(history)}
        for audit_id in {audit.past.audit_id for audit in history} - runs.keys():
            if found := find_audit_run(registry, audit_id):
                runs[audit_id] = found

        def address(past: PastAudit, runs: Mapping[str, AuditRun] = runs) -> str:
            return links.report(past.audit_id, runs[past.audit_id]) if past.audit_id in runs else ""

        with TemporaryDirectory(prefix="gradtrail-index-") as folder:
            copy = Path(folder) / part.name
            addressed = _addressed(history, links, runs, address)
            copy.write_text(_page(addressed, part, older, partial(links.index, index_run)), encoding="utf-8")
            upload_files(registry, index_run.run_id, [copy])
        _write(workspace, history, runs, part, older)
    return workspace.reports / INDEX_PAGE


def renew_report_pages(workspace: Workspace) -> None:
    """Write the index and its older pages again, and remove comparisons: what was erased may be quoted in them.

    Whoever needs a comparison again makes it again.
    """
    for page in (*workspace.reports.glob("audits-*.html"), *(workspace.reports / COMPARISONS).glob("*.html")):
        page.unlink(missing_ok=True)
    if _places(workspace):
        publish_report_index(workspace)


def write_report_index(workspace: Workspace, audits_a_part: int = AUDITS_A_PART) -> Path:
    """Write the index beside the reports, whole or not at all, and pages of older audits that are gone.

    Raises:
        NotFoundError: there is no ledger yet.
    """
    older, newest = index_parts(_places(workspace), audits_a_part)
    for part in (*(part for part in older if not (workspace.reports / part.name).is_file()), newest):
        history = _history(workspace, part)
        _write(workspace, history, _recorded_runs(history), part, older)
    return workspace.reports / INDEX_PAGE


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
        both = audit_history(connection, audit_ids=(comparison.a, comparison.b))
        by_id = {audit.past.audit_id: audit for audit in both}
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


def _places(workspace: Workspace) -> list[NumberedAudit]:
    with workspace.ledger().read() as connection:
        return numbered_audits(connection)


def _history(workspace: Workspace, part: IndexPart) -> list[IndexedAudit]:
    with workspace.ledger().read() as connection:
        return audit_history(connection, audit_ids=part.audit_ids)


def _page(
    audits: Sequence[IndexedAudit], part: IndexPart, older: Sequence[IndexPart], address: Callable[[str], str]
) -> str:
    """The page of a part, that of the newest audits leading to all others, and each of those back to it."""
    is_older = part.name != INDEX_PAGE
    others = () if is_older else tuple((other, address(other.name)) for other in older)
    return index_page(audits, part, others, address(INDEX_PAGE) if is_older else "")


def _write(
    workspace: Workspace,
    history: Sequence[IndexedAudit],
    runs: Mapping[str, AuditRun],
    part: IndexPart,
    older: Sequence[IndexPart],
) -> None:
    path = workspace.reports / part.name
    audits = _addressed(history, workspace.links(), runs, lambda past: f"{past.audit_id}/{REPORT_PAGE}")
    content = _page(audits, part, older, str).encode("utf-8")
    write_kept(workspace, path, lambda beside: beside.write_bytes(content))


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
