"""Linking: the audit becomes an MLflow run, and version, run and report point to each other."""

from __future__ import annotations

from prefect import task
from prefect.cache_policies import NO_CACHE

from gradtrail.digests import sha256_file, short
from gradtrail.nouns import SEVERITIES
from gradtrail.reports.write import HTML_NAME, JSON_NAME, PARQUET_NAME
from gradtrail.storage.audit_runs import AUDIT_TAG, LATEST_AUDIT_TAG, Links, describe, markdown_text, publish_audit
from gradtrail.tasks.reporting import RecordedAudit, recorded_audit
from gradtrail.tasks.workspace import Workspace


@task(cache_policy=NO_CACHE)
def link_report(workspace: Workspace, audit_id: str) -> str:
    """Put a written report into MLflow, link it from version and run, record it as done; returns the run id."""
    recorded = recorded_audit(workspace, audit_id)
    model_version, run = recorded.details.model_version, recorded.audit_run
    folder = workspace.reports / audit_id
    digests = {name: sha256_file(folder / name) for name in (HTML_NAME, JSON_NAME, PARQUET_NAME)}
    registry, links = workspace.registry(), Links(workspace.mlflow_url)
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
        metrics=_metrics(recorded),
        files=[folder / name for name in digests],
        dataset=recorded.pinned.dataset,
    )
    version = registry.resolve(model_version.model_version_id)
    describe(
        registry,
        version,
        f"**gradtrail** · newest audit {short(audit_id)} of {recorded.details.recorded_at:%Y-%m-%d %H:%M} UTC: "
        f"[report]({links.artifact(run.experiment_id, run.run_id, HTML_NAME)}) · "
        f"[audit run]({links.run(run.experiment_id, run.run_id)})",
    )
    registry.tag_version(version, {LATEST_AUDIT_TAG: audit_id})
    workspace.ledger().record_report(
        audit_id,
        html_uri=str(folder / HTML_NAME),
        html_sha256=digests.pop(HTML_NAME),
        file_sha256=digests,
        mlflow_run_id=run.run_id,
        mlflow_experiment_id=run.experiment_id,
    )
    return run.run_id


def _signature_tags(recorded: RecordedAudit) -> dict[str, str]:
    signature = recorded.signature
    if signature is None:
        return {}
    return {"gradtrail.signature": signature.signature, "gradtrail.public_key_sha256": signature.public_key_sha256}


def _metrics(recorded: RecordedAudit) -> dict[str, float]:
    details, coverage = recorded.details, recorded.index.coverage
    metrics = {
        "outputs": float(len(recorded.outputs)),
        "outputs_not_reproduced": float(sum(not result.reproduced for result in details.results)),
        "coverage_parameters": coverage.parameter_share,
        "coverage_examples": coverage.example_share,
    }
    for severity in SEVERITIES:
        metrics[f"findings_{severity}"] = float(sum(finding.severity == severity for finding in details.findings))
    for share in details.shares:
        if share.output_id is None and share.side == "proponent" and share.attribute in ("source", "licence"):
            metrics[f"share_{share.attribute}/{_metric_name(share.value)}"] = share.share
    return metrics


def _metric_name(value: str) -> str:
    kept = "".join(c if c.isalnum() or c in "_-. " else "_" for c in value)
    return kept[:100] or "unknown"


def _note(recorded: RecordedAudit, links: Links) -> str:
    details, run, audit_run = recorded.details, recorded.run, recorded.audit_run
    version = details.model_version
    lines = [
        f"## {markdown_text(recorded.title)}",
        f"[Open the report]({links.artifact(audit_run.experiment_id, audit_run.run_id, HTML_NAME)}) · "
        f"[model version]({links.model_version(version.name, version.version)}) · "
        f"[training run]({links.run(run.experiment_id, run.run_id)})",
        "",
        f"{len(recorded.outputs)} outputs, method `{details.audit.method}`, "
        f"checkpoint `{short(recorded.pinned.serving.checkpoint_id)}`, "
        f"dataset version `{short(recorded.index.dataset_version_id)}`.",
        "",
    ]
    overall = [finding for finding in details.findings if finding.output_id is None]
    lines += [f"- **{finding.severity}**: {markdown_text(finding.message)}" for finding in overall]
    return "\n".join(lines)
