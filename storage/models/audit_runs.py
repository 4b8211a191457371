"""An audit as an MLflow run, and the links between MLflow's pages and the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from urllib.parse import quote

from mlflow.entities import Metric, Param, Run, RunTag
from mlflow.utils.validation import MAX_TAG_VAL_LENGTH

from gradtrail.addresses import INDEX_PAGE, REPORT_PAGE, output_anchor
from gradtrail.nouns import DatasetVersion
from gradtrail.nouns import Run as TrainingRun
from gradtrail.storage.models.logged_models import log_as_input
from gradtrail.storage.models.registry import RegisteredVersion, Registry, marked_where_cut

AUDIT_TAG = "gradtrail.audit"
TREND_TAG = "gradtrail.trend"
INDEX_TAG = "gradtrail.index"
LATEST_AUDIT_TAG = "gradtrail.latest_audit"
AUDIT_EXPERIMENT = "gradtrail audits"
NOTE_TAG = "mlflow.note.content"
_SECTION_START = "[//]: # (gradtrail: written by gradtrail, do not edit)"
_SECTION_END = "[//]: # (gradtrail: end)"
_MOST_OF_A_DESCRIPTION = 5000
"""Of a model or version: the column of MLflow's databases. SQLite takes more, PostgreSQL refuses it."""
_MOST_METRICS = 1000
"""MLflow's own limit for one batch."""


@dataclass(frozen=True)
class AuditRun:
    """An MLflow run of the experiment of audits: it holds one audit, the trend of one model, or the report index."""

    run_id: str
    experiment_id: str


@dataclass(frozen=True)
class Links:
    """Deep links at public base URLs; each part is URL-encoded.

    Attributes:
        base_url: the MLflow UI.
        report_url: where the folder of reports is served or published; empty where it is not. Then links to a report
            lead to its copy in MLflow, whose viewer shows pages in a sandbox that knows no places within them.
    """

    base_url: str
    report_url: str = ""

    def run(self, experiment_id: str, run_id: str) -> str:
        """Page of a run."""
        return f"{self.base_url}/#/experiments/{quote(experiment_id, safe='')}/runs/{quote(run_id, safe='')}"

    def training_run(self, run: TrainingRun) -> str:
        """Page of the run that trained a model; empty where the version was registered without one."""
        return self.run(run.experiment_id, run.run_id) if run.is_in_mlflow else ""

    def metrics(self, run: AuditRun) -> str:
        """Page that draws the metrics of a run."""
        return f"{self.run(run.experiment_id, run.run_id)}/model-metrics"

    def artifact(self, experiment_id: str, run_id: str, path: str) -> str:
        """Page that shows one artifact of a run."""
        return f"{self.run(experiment_id, run_id)}/artifacts/{quote(path, safe='')}"

    def trace(self, experiment_id: str, trace_id: str) -> str:
        """Page that shows one trace."""
        return f"{self.base_url}/#/experiments/{quote(experiment_id, safe='')}/traces/{quote(trace_id, safe='')}"

    def model(self, name: str) -> str:
        """Page of a registered model."""
        return f"{self.base_url}/#/models/{quote(name, safe='')}"

    def model_version(self, name: str, version: int) -> str:
        """Page of a registered model version."""
        return f"{self.model(name)}/versions/{version}"

    def report(self, audit_id: str, run: AuditRun) -> str:
        """An audit's report: where reports are served, else its copy in the audit's run."""
        if self.report_url:
            return f"{self.report_url}/{quote(audit_id, safe='')}/{REPORT_PAGE}"
        return self.artifact(run.experiment_id, run.run_id, REPORT_PAGE)

    def output(self, audit_id: str, output_id: str, run: AuditRun) -> str:
        """The section of one output in the report of an audit; the whole report where reports are not served."""
        report = self.report(audit_id, run)
        return f"{report}#{output_anchor(output_id)}" if self.report_url else report

    def index(self, run: AuditRun, page: str = INDEX_PAGE) -> str:
        """The index of all reports, or a page of older ones: where reports are served, else its copy in its run."""
        if self.report_url:
            return f"{self.report_url}/{quote(page, safe='')}"
        return self.artifact(run.experiment_id, run.run_id, page)


def markdown_text(text: str) -> str:
    """Text that shows as it is where MLflow renders markdown: no links, no HTML, no emphasis."""
    return "".join(f"\\{character}" if character in "\\`*_[]<>#|!" else character for character in text)


def find_audit_run(registry: Registry, audit_id: str) -> AuditRun | None:
    """The audit's run, by its tag."""
    experiment_id = registry.experiment_id(AUDIT_EXPERIMENT)
    found = registry.client.search_runs([experiment_id], f"tags.`{AUDIT_TAG}` = '{audit_id}'", max_results=1)
    return AuditRun(str(found[0].info.run_id), experiment_id) if found else None


def open_audit_run(registry: Registry, audit_id: str, name: str) -> AuditRun:
    """Find the audit's run by its tag, or create it with the tag in one call, so that a repeat never makes a second."""
    if found := find_audit_run(registry, audit_id):
        return found
    experiment_id = registry.experiment_id(AUDIT_EXPERIMENT)
    run = registry.client.create_run(experiment_id, run_name=name, tags={AUDIT_TAG: audit_id})
    return AuditRun(str(run.info.run_id), experiment_id)


def open_trend_run(registry: Registry, model: str) -> AuditRun:
    """The run that draws a model's metrics over its audits, created when it does not exist."""
    return _open_summary(registry, TREND_TAG, model, f"Trend of {model}")


def open_index_run(registry: Registry) -> AuditRun:
    """The run that holds a copy of the report index, created when it does not exist."""
    return _open_summary(registry, INDEX_TAG, "all", "All audits")


def _open_summary(registry: Registry, tag: str, value: str, name: str) -> AuditRun:
    """The oldest such run, so that two that were created at one time do not take turns.

    Compared here and not by MLflow, whose filters cannot quote every name that a model may have.
    """
    experiment_id = registry.experiment_id(AUDIT_EXPERIMENT)
    token: str | None = None
    while token != "":
        page = registry.client.search_runs(
            [experiment_id], f"tags.`{tag}` LIKE '%'", order_by=["attributes.start_time ASC"], page_token=token
        )
        for run in page:
            if run.data.tags.get(tag) == value:
                return AuditRun(str(run.info.run_id), experiment_id)
        token = page.token or ""
    created = registry.client.create_run(experiment_id, run_name=name, tags={tag: value})
    registry.client.set_terminated(created.info.run_id)
    return AuditRun(str(created.info.run_id), experiment_id)


def logged_steps(registry: Registry, run: AuditRun, metric: str) -> set[int]:
    """The steps at which a run has a figure for that metric."""
    return {int(point.step) for point in registry.client.get_metric_history(run.run_id, metric)}


def log_point(
    registry: Registry,
    run: AuditRun,
    figures: Mapping[str, float],
    step: int,
    moment: datetime,
    logged_model: str = "",
) -> None:
    """Log figures for one step of a run, as of a moment; MLflow keeps one point of the same figure, step and moment.

    The last batch holds the last figure, so that a step that has it is whole. With the id of a `logged_model` they
    stand on its page, too.
    """
    milliseconds, model_id = int(moment.timestamp() * 1000), logged_model or None
    points = [
        Metric(name, figure, milliseconds, step, model_id=model_id, run_id=run.run_id)
        for name, figure in figures.items()
    ]
    for start in range(0, len(points), _MOST_METRICS):
        registry.client.log_batch(run.run_id, metrics=points[start : start + _MOST_METRICS])


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
    logged_model: str = "",
) -> None:
    """Fill the audit's run: note, tags, parameters, metrics, data, report files. Repeating it changes nothing.

    The metrics are those of a `logged_model`, too, where its id is given.
    """
    client = registry.client
    client.log_batch(run.run_id, params=[Param(key, marked_where_cut(value)) for key, value in parameters.items()])
    log_as_input(registry, run.run_id, logged_model)
    log_point(registry, run, metrics, 0, datetime.now(UTC), logged_model)
    registry.log_dataset(run.run_id, dataset)
    upload_files(registry, run.run_id, files)
    described = {**tags, NOTE_TAG: _with_section(_note(client.get_run(run.run_id)), note, MAX_TAG_VAL_LENGTH)}
    client.log_batch(run.run_id, tags=[RunTag(key, value) for key, value in described.items()])
    client.set_terminated(run.run_id)


def uploaded_names(registry: Registry, run_id: str) -> set[str]:
    """Names of the files that a run holds, without those in folders."""
    return {str(file.path) for file in registry.client.list_artifacts(run_id) if not file.is_dir}


def upload_files(registry: Registry, run_id: str, files: Sequence[Path]) -> None:
    """Put report files into the audit's run; those of the same name are replaced."""
    for file in files:
        registry.client.log_artifact(run_id, str(file))


def describe(
    registry: Registry, version: RegisteredVersion, section: str, tags: Mapping[str, str] = MappingProxyType({})
) -> None:
    """Put gradtrail's section into the descriptions of a model version and of its training run, if that is still there.

    What people wrote there stays as it is; an earlier section of gradtrail is replaced. Both get the tags.
    """
    client = registry.client
    description = client.get_model_version(version.name, str(version.version)).description or ""
    client.update_model_version(version.name, str(version.version), description=_with_section(description, section))
    for key, value in tags.items():
        client.set_model_version_tag(version.name, str(version.version), key, value)
    if run := registry.active_run(version.run_id):
        described = {**tags, NOTE_TAG: _with_section(_note(run), section, MAX_TAG_VAL_LENGTH)}
        client.log_batch(version.run_id, tags=[RunTag(key, value) for key, value in described.items()])


def describe_model(registry: Registry, name: str, section: str) -> None:
    """Put gradtrail's section into the description of a registered model; what people wrote there stays as it is."""
    description = registry.client.get_registered_model(name).description or ""
    registry.client.update_registered_model(name, description=_with_section(description, section))


def annotate(registry: Registry, run: AuditRun, note: str) -> None:
    """Set the note of a run that is gradtrail's own, below which people may write: only its section is replaced."""
    existing = registry.client.get_run(run.run_id)
    registry.client.set_tag(run.run_id, NOTE_TAG, _with_section(_note(existing), note, MAX_TAG_VAL_LENGTH))


def _note(run: Run) -> str:
    return str(run.data.tags.get(NOTE_TAG, ""))


def _with_section(text: str, section: str, most: int = _MOST_OF_A_DESCRIPTION) -> str:
    """Put gradtrail's section in place of its earlier one; what others wrote stays whole, and ours is shortened.

    MLflow cuts what is longer than `most` at its end, where people may have written.
    """
    before, _, rest = text.partition(_SECTION_START)
    _, end, after = rest.partition(_SECTION_END)
    # Without the end mark nobody can say where gradtrail's words stop: keep them all.
    before, after = before.strip(), (after if end else rest).strip()
    others = "\n\n".join(part for part in (before, after) if part)
    room = most - len(others) - len(_SECTION_START) - len(_SECTION_END) - 4 * len("\n\n")
    shortened = _shortened(section, room)
    if not shortened:
        return others
    own = f"{_SECTION_START}\n\n{shortened}\n\n{_SECTION_END}"
    return "\n\n".join(part for part in (before, own, after) if part)


def _shortened(section: str, room: int) -> str:
    """The section without what does not fit at its end: whole lines, then whole parts between dots, no half links."""
    if len(section) <= room:
        return section
    for separator in ("\n", " · "):
        parts = section.split(separator)
        while len(parts) > 1 and len(separator.join(parts)) + len(" …") > room:
            parts.pop()
        section = separator.join(parts)
        if len(section) + len(" …") <= room:
            return f"{section} …"
    return ""
