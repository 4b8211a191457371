"""Linking: the audit becomes an MLflow run, and version, run and report point to each other."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

from gradtrail.digests import sha256_file, short
from gradtrail.errors import NotFoundError
from gradtrail.lineage.read.audit_history import PastAudit, numbered_audits
from gradtrail.reports.write import HTML_NAME, JSON_NAME, PARQUET_NAME
from gradtrail.storage.models.audit_runs import (
    AUDIT_TAG,
    LATEST_AUDIT_TAG,
    Links,
    describe,
    describe_model,
    markdown_text,
    publish_audit,
)
from gradtrail.storage.models.logged_models import logged_model_of
from gradtrail.storage.models.registry import Registry
from gradtrail.tasks.report.history import audit_history, audit_metrics, wrong_outputs
from gradtrail.tasks.report.reported_audits import ReportedAudit, ShownAudit


def link_report(shown: ShownAudit) -> str:
    """Put a written report into MLflow, link it from version and run, record it as done; returns the run id."""
    workspace, audit_id, recorded = shown.workspace, shown.audit_id, shown.recorded
    model_version, run = recorded.details.model_version, recorded.audit_run
    with workspace.ledger().read() as connection:
        since = [
            each.audit_id
            for each in numbered_audits(connection, model_version.name)
            if each.event_sequence >= recorded.details.event_sequence
        ]
        history = audit_history(connection, model_version.name, since)
    this = next(each for each in history if each.past.audit_id == audit_id)
    folder = workspace.reports / audit_id
    digests = {name: sha256_file(folder / name) for name in (HTML_NAME, JSON_NAME, PARQUET_NAME)}
    registry, links = shown.registry, workspace.links()
    audit = recorded.details.audit
    publish_audit(
        registry,
        run,
        note=_note(recorded, links),
        tags={
            AUDIT_TAG: audit_id,
            "gradtrail.model_version": model_version.model_version_id,
            "gradtrail.checkpoint": recorded.pinned.serving.checkpoint_id,
            "gradtrail.dataset_version": recorded.index.dataset_version_id,
            "gradtrail.index": recorded.index.index_id,
            "gradtrail.audit_root": recorded.evidence.audit_root,
            "gradtrail.event_hash": recorded.evidence.event_hash,
            **_signature_tags(recorded),
        },
        parameters={"method": audit.method, **{name: str(value) for name, value in audit.parameters.items()}},
        metrics=audit_metrics(this, wrong_outputs(workspace, audit_id)),
        files=[folder / name for name in digests],
        dataset=recorded.pinned.dataset,
        logged_model=_logged_model(registry, model_version.model_version_id),
    )
    lead_to_report(registry, links, recorded, [each.past for each in history])
    workspace.ledger().record_report(
        audit_id,
        html_uri=str(folder / HTML_NAME),
        html_sha256=digests.pop(HTML_NAME),
        file_sha256=digests,
        mlflow_run_id=run.run_id,
        mlflow_experiment_id=run.experiment_id,
    )
    return run.run_id


def _logged_model(registry: Registry, model_version_id: str) -> str:
    try:
        return logged_model_of(registry, registry.resolve(model_version_id))
    except NotFoundError:  # a version that was deleted has no page for figures
        return ""


def _signature_tags(recorded: ReportedAudit) -> dict[str, str]:
    signature = recorded.signature
    if signature is None:
        return {}
    return {"gradtrail.signature": signature.signature, "gradtrail.public_key_sha256": signature.public_key_sha256}


def lead_to_report(registry: Registry, links: Links, recorded: ReportedAudit, history: Sequence[PastAudit]) -> None:
    """Lead from model version, training run and model to the audit, where no later one of theirs is there already."""
    details, run = recorded.details, recorded.audit_run
    audit_id, name, number = details.audit.audit_id, details.model_version.name, details.model_version.version
    later = [past for past in history if past.event_sequence > details.event_sequence and past.reported]
    elsewhere = (
        f"[report]({links.report(audit_id, run)}) · [audit run]({links.run(run.experiment_id, run.run_id)}) · "
        f"[trend]({links.metrics(recorded.trend_run)}) · [all audits]({links.index(recorded.index_run)})"
    )
    when = f"{details.recorded_at:%Y-%m-%d %H:%M} UTC"
    if not any(past.version == number for past in later):
        with suppress(NotFoundError):  # a version that was deleted has no page to lead from
            version = registry.resolve(details.model_version.model_version_id)
            section = f"**gradtrail** · newest audit {short(audit_id)} of {when}: {elsewhere}"
            describe(registry, version, section, {LATEST_AUDIT_TAG: audit_id})
    if not later:
        section = f"**gradtrail** · newest audit {short(audit_id)}, of version {number}, {when}: {elsewhere}"
        describe_model(registry, name, section)


def _note(recorded: ReportedAudit, links: Links) -> str:
    details, run, audit_run = recorded.details, recorded.run, recorded.audit_run
    version = details.model_version
    training_run = f"[training run]({links.training_run(run)}) · " if run.is_in_mlflow else ""
    lines = [
        f"## {markdown_text(recorded.title)}",
        f"[Open the report]({links.report(details.audit.audit_id, audit_run)}) · "
        f"[model version]({links.model_version(version.name, version.version)}) · "
        f"{training_run}[trend]({links.metrics(recorded.trend_run)}) · [all audits]({links.index(recorded.index_run)})",
        "",
        f"{len(recorded.outputs)} outputs, method `{details.audit.method}`, "
        f"checkpoint `{short(recorded.pinned.serving.checkpoint_id)}`, "
        f"dataset version `{short(recorded.index.dataset_version_id)}`.",
        "",
    ]
    overall = [finding for finding in details.findings if finding.output_id is None]
    lines += [f"- **{finding.severity}**: {markdown_text(finding.message)}" for finding in overall]
    return "\n".join(lines)
