"""An audit as an MLflow run, and the links between MLflow's pages and the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from gradtrail.nouns import DatasetVersion
from gradtrail.storage.registry import RegisteredVersion, Registry

AUDIT_TAG = "gradtrail.audit"
LATEST_AUDIT_TAG = "gradtrail.latest_audit"
AUDIT_EXPERIMENT = "gradtrail audits"
NOTE_TAG = "mlflow.note.content"
_SECTION_START = "[//]: # (gradtrail: written by gradtrail, do not edit)"
_SECTION_END = "[//]: # (gradtrail: end)"


@dataclass(frozen=True)
class Links:
    """Deep links into the MLflow UI at a public base URL; each part is URL-encoded."""

    base_url: str

    def run(self, experiment_id: str, run_id: str) -> str:
        """Page of a run."""
        return f"{self.base_url}/#/experiments/{quote(experiment_id, safe='')}/runs/{quote(run_id, safe='')}"

    def artifact(self, experiment_id: str, run_id: str, path: str) -> str:
        """Page that shows one artifact of a run."""
        return f"{self.run(experiment_id, run_id)}/artifacts/{quote(path, safe='')}"

    def model_version(self, name: str, version: int) -> str:
        """Page of a registered model version."""
        return f"{self.base_url}/#/models/{quote(name, safe='')}/versions/{version}"


@dataclass(frozen=True)
class AuditRun:
    """The MLflow run that holds an audit."""

    run_id: str
    experiment_id: str


def markdown_text(text: str) -> str:
    """Text that shows as it is where MLflow renders markdown: no links, no HTML, no emphasis."""
    return "".join(f"\\{character}" if character in "\\`*_[]<>#|!" else character for character in text)


def open_audit_run(registry: Registry, audit_id: str, name: str) -> AuditRun:
    """Find the audit's run by its tag, or create it with the tag in one call, so that a repeat never makes a second."""
    experiment_id = registry.experiment_id(AUDIT_EXPERIMENT)
    found = registry.client.search_runs([experiment_id], f"tags.`{AUDIT_TAG}` = '{audit_id}'", max_results=1)
    if found:
        return AuditRun(str(found[0].info.run_id), experiment_id)
    run = registry.client.create_run(experiment_id, run_name=name, tags={AUDIT_TAG: audit_id})
    return AuditRun(str(run.info.run_id), experiment_id)


def publish_audit(
    registry: Registry,
    run: AuditRun,
    *,
    note: str,
    tags: Mapping[str, str],
    parameters: Mapping[str, str],
    metrics: Mapping[str, float],
    files: Sequence[Path],
    dataset: DatasetVersion,
) -> None:
    """Fill the audit's run: note, tags, parameters, metrics, data, report files. Repeating it changes nothing."""
    client = registry.client
    for key, value in parameters.items():
        client.log_param(run.run_id, key, value)
    for key, number in metrics.items():
        client.log_metric(run.run_id, key, number, step=0)
    registry.log_dataset(run.run_id, dataset)
    upload_files(registry, run.run_id, files)
    for key, value in {**tags, NOTE_TAG: note}.items():
        client.set_tag(run.run_id, key, value)
    client.set_terminated(run.run_id)


def upload_files(registry: Registry, run_id: str, files: Sequence[Path]) -> None:
    """Put report files into the audit's run; those of the same name are replaced."""
    for file in files:
        registry.client.log_artifact(run_id, str(file))


def describe(registry: Registry, version: RegisteredVersion, section: str) -> None:
    """Put gradtrail's section into the descriptions of a model version and of its training run.

    What people wrote there stays as it is; an earlier section of gradtrail is replaced.
    """
    client = registry.client
    description = client.get_model_version(version.name, str(version.version)).description or ""
    client.update_model_version(version.name, str(version.version), description=_with_section(description, section))
    if version.run_id:
        note = client.get_run(version.run_id).data.tags.get(NOTE_TAG, "")
        client.set_tag(version.run_id, NOTE_TAG, _with_section(note, section))


def _with_section(text: str, section: str) -> str:
    before, _, rest = text.partition(_SECTION_START)
    _, _, after = rest.partition(_SECTION_END)
    own = f"{_SECTION_START}\n\n{section}\n\n{_SECTION_END}"
    return "\n\n".join(part for part in (before.strip(), own, after.strip()) if part)
