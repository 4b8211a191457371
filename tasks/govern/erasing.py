"""Erasing: the ledger's tombstones first, then every other trace, in an order that a kill can interrupt anywhere.

What is left to do follows from the tombstones alone, so that the next call finishes what a kill cut short.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from gradtrail.digests import short
from gradtrail.errors import StoreError
from gradtrail.lineage.erasure import erasures
from gradtrail.lineage.erasure.erasures import Erasure
from gradtrail.lineage.erasure.plan import ErasureRequest, names_refused
from gradtrail.lineage.erasure.rewriting import rewrite_database
from gradtrail.lineage.events.revisions import record_revision
from gradtrail.lineage.read import listings, queries
from gradtrail.nouns import is_in_mlflow
from gradtrail.storage.files.exclusive import holding
from gradtrail.storage.models.manifests import rewrite_attributes
from gradtrail.storage.sources.inbox_erasure import remove_records
from gradtrail.storage.sources.outputs import Refused
from gradtrail.storage.sources.spool import open_spool, refusal_key
from gradtrail.tasks.core.workspace import Workspace
from gradtrail.tasks.report.index_pages import renew_report_pages
from gradtrail.tasks.report.writing import rewrite_report

RETENTION = "payload retention"


@dataclass(frozen=True)
class ErasureOutcome:
    """What an erasure did, earlier unfinished ones included.

    Attributes:
        erased: what was erased, each as kind and id.
        events: the ledger's events that say so.
        rows: rows deleted from the ledger, by table.
        payloads: payload files deleted.
        inbox_records: records taken out of the inbox.
        reports: reports that showed something of it and were written again.
        elsewhere: places beyond gradtrail's reach that may still hold it, as sentences.
    """

    erased: tuple[tuple[str, str], ...] = ()
    events: tuple[int, ...] = ()
    rows: tuple[tuple[str, int], ...] = ()
    payloads: int = 0
    inbox_records: int = 0
    reports: tuple[str, ...] = ()
    elsewhere: tuple[str, ...] = ()


@dataclass(frozen=True)
class ErasurePreview:
    """What an erasure would do, and which reports show something of it now."""

    erased: tuple[tuple[str, str], ...]
    rows: tuple[tuple[str, int], ...]
    reports: tuple[str, ...]


def preview_erasure(workspace: Workspace, request: ErasureRequest) -> ErasurePreview:
    """What a request would erase; changes nothing.

    Raises:
        NotFoundError: an example or output that was never recorded, or nobody of that name.
    """
    request = _with_waiting(workspace, request)
    with workspace.ledger().read() as connection:
        planned = erasures.plan_erasure(connection, request)
    if planned is None:
        return ErasurePreview((), (), ())
    shown = tuple(str(workspace.reports / audit_id) for audit_id in _audits_that_show(workspace, [planned]))
    return ErasurePreview(planned.subjects, planned.rows, shown)


def erase_data(workspace: Workspace, request: ErasureRequest | None, reason: str | None = None) -> ErasureOutcome:
    """Erase what is asked for, and finish what an earlier call left; without a request only the latter.

    Waits until audits that are being made have ended: they hold what is to be erased, and would record it after that.

    Raises:
        NotFoundError: an example or output that was never recorded, or nobody of that name.
        StoreError: a file of the inbox could not be read or replaced; all else is erased.
        GradtrailError: something could not be erased now; the ledger says so until a later call finishes it.
    """
    with _no_audit_at_work(workspace):
        if request is not None:
            erasures.erase(workspace.ledger(), _with_waiting(workspace, request), reason)
        return _finish(workspace)


def retain_payloads(workspace: Workspace, days: int) -> ErasureOutcome:
    """Erase the payloads of outputs that were recorded more than `days` days ago; measured gradients stay."""
    before = datetime.now(UTC) - timedelta(days=days)
    with workspace.ledger().read() as connection:
        gone = erasures.erased_subjects(connection, ["output", "payload"])
        old = [each for each in listings.outputs_recorded_before(connection, before) if each not in gone]
    request = ErasureRequest(payload_output_ids=tuple(old))
    return erase_data(workspace, request if old else None, f"{RETENTION}: {days} days")


@contextmanager
def _no_audit_at_work(workspace: Workspace) -> Iterator[None]:
    with workspace.ledger().read() as connection:
        versions = sorted(each.model_version_id for each in queries.model_versions(connection))
    with ExitStack() as held:
        for model_version_id in versions:
            held.enter_context(holding(workspace.audit_lock(model_version_id)))
        yield


def _with_waiting(workspace: Workspace, request: ErasureRequest) -> ErasureRequest:
    """The request, with those of its outputs that were read and are not in the ledger."""
    if not request.output_ids or not workspace.spool.is_file():
        return request
    with open_spool(workspace.spool) as spool:
        refused = {f"{each.source}:{each.record_id}" for each in spool.all_refusals()}
        waiting = {*spool.held_payloads(request.output_ids), *refused.intersection(request.output_ids)}
    return replace(request, waiting_output_ids=frozenset(waiting))


def _forget_unrecorded(workspace: Workspace, output_ids: set[str]) -> None:
    """Erase from the spool what waits there, and every cause that the ledger does not have any more."""
    if not output_ids or not workspace.spool.is_file():
        return
    with workspace.ledger().read() as connection:
        standing = [Refused(each.source, each.record_id, each.cause) for each in queries.quarantined(connection)]
    with open_spool(workspace.spool) as spool:
        spool.forget_outputs(output_ids, names_refused(output_ids), [refusal_key(each) for each in standing])


def _finish(workspace: Workspace) -> ErasureOutcome:
    """Remove every trace of what the ledger says was erased, and record that it is done."""
    ledger = workspace.ledger()
    with ledger.read() as connection:
        pending = erasures.unfinished(connection)
    if not pending:
        return ErasureOutcome()
    if any(erasure.rows for erasure in pending):
        rewrite_database(ledger)
    payloads = _delete_payloads(workspace, _ids(pending, "output", "payload"))
    inbox = remove_records(workspace.home_source, _ids(pending, "output", "payload"))
    _forget_unrecorded(workspace, _ids(pending, "output"))
    _forget_queries(workspace, _ids(pending, "output"))
    _rewrite_manifests(workspace, _ids(pending, "example", "attribute"))
    audits = _audits_that_show(workspace, pending)
    events = ", ".join(str(erasure.event_sequence) for erasure in pending)
    for audit_id in audits:
        rewrite_report(workspace, audit_id, f"erasure by event {events}")
    if any(kind != "payload" for erasure in pending for kind, _ in erasure.subjects):
        renew_report_pages(workspace)
    ledger.publish_snapshot()
    _require_emptied(inbox.failed)
    for erasure in pending:
        erasures.finish(ledger, erasure.erasure_id)
    ledger.publish_snapshot()
    rows: dict[str, int] = {}
    for name, count in (row for erasure in pending for row in erasure.rows):
        rows[name] = rows.get(name, 0) + count
    return ErasureOutcome(
        erased=tuple(subject for erasure in pending for subject in erasure.subjects),
        events=tuple(erasure.event_sequence for erasure in pending),
        rows=tuple(sorted(rows.items())),
        payloads=payloads,
        inbox_records=inbox.records,
        reports=tuple(str(workspace.reports / audit_id) for audit_id in audits),
        elsewhere=tuple(_elsewhere(workspace, pending)),
    )


def _require_emptied(failed: Sequence[tuple[str, str]]) -> None:
    if failed:
        raise StoreError(
            "The erasure is not finished: files of the inbox may still hold what was erased. "
            + " ".join(f"{name}: {cause}." for name, cause in failed),
            "All else is erased. Let the user that runs gradtrail read and replace them, or delete them, then run "
            "gradtrail erase.",
        )


def _ids(pending: Sequence[Erasure], *kinds: str) -> set[str]:
    return {subject_id for erasure in pending for kind, subject_id in erasure.subjects if kind in kinds}


def _delete_payloads(workspace: Workspace, output_ids: set[str]) -> int:
    with workspace.ledger().read() as connection:
        digests = listings.payloads_by_output(connection)
        gone = erasures.erased_subjects(connection, ["output", "payload"])
    kept = {digest for output_id, digest in digests.items() if output_id not in gone}
    payloads = workspace.payloads()
    found = [digests[each] for each in sorted(output_ids) if each in digests]
    return sum(payloads.delete(each) for each in found if each not in kept)


def _forget_queries(workspace: Workspace, output_ids: set[str]) -> None:
    if not output_ids:
        return
    with workspace.ledger().read() as connection:
        indexes = listings.indexes(connection)
    for index in indexes:
        table = workspace.gradients().existing(index.index_id)
        if table is not None:
            table.forget_queries(sorted(output_ids))


def _rewrite_manifests(workspace: Workspace, example_ids: set[str]) -> None:
    with workspace.ledger().read() as connection:
        datasets = listings.dataset_versions(connection)
        attributes = {
            dataset.dataset_version_id: listings.all_attributes(connection, dataset.dataset_version_id, example_ids)
            for dataset in datasets
        }
    for dataset in datasets:
        path, left = Path(dataset.manifest_uri), attributes[dataset.dataset_version_id]
        if left and path.is_file():
            sha256 = rewrite_attributes(path, left)
            if sha256 != dataset.dataset_version_id:
                files = {path.name: sha256}
                record_revision(workspace.ledger(), "manifest", dataset.dataset_version_id, files, "erasure")


def _audits_that_show(workspace: Workspace, pending: Sequence[Erasure]) -> list[str]:
    """Reported audits that may show something of it: previews, and attributes from before they were personal."""
    # Every report counts what was refused before it, with the causes.
    whole = any(name in ("example", "quarantine") for erasure in pending for name, _ in erasure.rows)
    with workspace.ledger().read() as connection:
        reported = [report.audit_id for report in listings.reports(connection)]
        if whole:
            return reported
        naming = listings.reported_audits_naming(connection, _ids(pending, "example"), _ids(pending, "output"))
    concerned = {*naming, *_ids(pending, "audit")}
    return [audit_id for audit_id in reported if audit_id in concerned]


def _elsewhere(workspace: Workspace, pending: Sequence[Erasure]) -> list[str]:
    said = []
    examples = _ids(pending, "example", "attribute")
    with workspace.ledger().read() as connection:
        for version in queries.model_versions(connection):
            if examples and listings.all_attributes(connection, version.dataset_version_id, examples):
                run = f"MLflow run {version.run_id}" if is_in_mlflow(version.run_id) else "MLflow's files"
                said.append(
                    f"{run} of {version.model_version_id}: the registered manifest and whatever "
                    "else was logged with the model."
                )
        for index in listings.indexes(connection) if examples else ():
            table = workspace.gradients().existing(index.index_id)
            named = sorted(set(table.attribute_names) & set(workspace.personal_attributes)) if table else []
            if named:
                said.append(
                    f"Gradient index {short(index.index_id)}: column {', '.join(named)}, from before it was declared "
                    "personal; delete its table and run gradtrail index again."
                )
    if _ids(pending, "output"):
        others = [f"{source.name} ({source.kind})" for source in workspace.sources if not source.is_home]
        said += [f"The source {', '.join(others)}, which gradtrail only reads."] if others else []
        said.append("The feed that delivered the outputs, and MLflow traces of them.")
    if examples:
        said.append("The training data itself, and models that were trained on it.")
    said.append("What was sent to others: alerts, lineage events, Prefect's own records of runs.")
    return [*said, "Backups, and copies that readers made of snapshot or reports."]
