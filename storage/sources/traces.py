"""MLflow traces as a source: the tag `gradtrail.audit` is the queue, and feedback on the trace is the answer.

The tag says `pending` where somebody wants an audit, then `collected`, `sampled_out` or `refused`, in the end `done`.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import AssessmentSource, AssessmentSourceType, LifecycleStage, Trace, TraceInfo, TraceState
from mlflow.exceptions import MlflowException

from gradtrail.errors import DataError, NotFoundError, StoreError
from gradtrail.nouns import Fate
from gradtrail.storage.models.audit_runs import markdown_text
from gradtrail.storage.sources.config import SourceConfig
from gradtrail.storage.sources.payload_json import RECORD_BYTES_LIMIT
from gradtrail.storage.sources.rows import Arrival, Settled

QUEUE_TAG = "gradtrail.audit"
PENDING, COLLECTED, DONE, REFUSED = "pending", "collected", "done", "refused"
FEEDBACK = "gradtrail.audit"
_SIZE = "mlflow.trace.sizeBytes"
_PAGE = 200
_SERVER_FAULT = 500
_FIELDS = {
    "model": "tags.gradtrail.model",
    "version": "tags.gradtrail.version",
    "inputs": "request",
    "prediction": "response",
}
_TAGS: dict[Fate, str] = {"waiting": COLLECTED, "sampled_out": "sampled_out", "refused": REFUSED}


@dataclass(frozen=True)
class Answer:
    """What a trace is told: `value` audited or refused, and why or where in `rationale`, which may be markdown."""

    trace_id: str
    tag: str
    value: str
    rationale: str
    audit_id: str = ""


class TraceSource:
    """The traces of some experiments that are tagged `pending`, oldest first, however old they are."""

    def __init__(self, config: SourceConfig, client: MlflowClient) -> None:
        self.config = config
        self._client = client
        unset = {name: path for name, path in _FIELDS.items() if name not in config.constants}
        self._fields = unset | dict(config.fields)

    def arrivals(self, since: datetime | None, marks: Mapping[str, Any]) -> Iterator[Arrival]:  # noqa: ARG002 - the tag is the queue
        """Pending traces whose call has ended.

        Raises:
            NotFoundError: there is no such experiment.
            StoreError: MLflow cannot be read now.
        """
        for info in self.tagged(PENDING):
            if info.state != TraceState.IN_PROGRESS:
                yield self._arrival(info)

    def settle(self, settled: Collection[Settled]) -> None:
        """Tag each trace with what became of it; a refused one is told why.

        Raises:
            StoreError: MLflow cannot be written now.
        """
        for each in settled:
            if each.fate == "refused":
                self.answer(Answer(each.name, REFUSED, "refused", markdown_text(each.cause)))
            else:
                self._tag(each.name, _TAGS[each.fate])

    def tagged(self, tag: str) -> list[TraceInfo]:
        """All traces of the experiments that carry this tag, oldest first, without their spans.

        Raises:
            NotFoundError: there is no such experiment.
            StoreError: MLflow cannot be read now.
        """
        found: list[TraceInfo] = []
        token: str | None = None
        try:
            locations = [self._experiment_id(name) for name in self.config.experiments]
            while token != "":
                page = self._client.search_traces(
                    locations=locations,
                    filter_string=f"tag.`{QUEUE_TAG}` = '{tag}'",
                    order_by=["timestamp_ms ASC"],
                    max_results=_PAGE,
                    page_token=token,
                    include_spans=False,
                )
                found += [trace.info for trace in page]
                token = page.token or ""
        except MlflowException as fault:
            raise self._away("read", fault) from fault
        return found

    def answer(self, answer: Answer) -> None:
        """Log feedback on a trace and then its tag; what is there already is not logged again.

        Raises:
            StoreError: MLflow cannot be written now.
        """
        try:
            trace = self._client.get_trace(answer.trace_id, display=False)
            if not any(_is_ours(each, answer) for each in trace.info.assessments):
                self._log_feedback(answer)
        except MlflowException as fault:
            raise self._away("answered", fault) from fault
        self._tag(answer.trace_id, answer.tag)

    def _log_feedback(self, answer: Answer) -> None:
        from mlflow.entities import Feedback
        from mlflow.tracing.client import TracingClient

        TracingClient(self._client.tracking_uri).log_assessment(
            answer.trace_id,
            Feedback(
                name=FEEDBACK,
                value=answer.value,
                source=AssessmentSource(AssessmentSourceType.CODE, "gradtrail"),
                rationale=answer.rationale,
                metadata={"audit_id": answer.audit_id},
            ),
        )

    def _tag(self, trace_id: str, value: str) -> None:
        try:
            self._client.set_trace_tag(trace_id, QUEUE_TAG, value)
        except MlflowException as fault:
            raise self._away("tagged", fault) from fault

    def _arrival(self, info: TraceInfo) -> Arrival:
        place = f"{self.config.name}, trace {info.trace_id}"
        try:
            if int(info.trace_metadata.get(_SIZE, 0)) > RECORD_BYTES_LIMIT:
                raise DataError(f"{place} is larger than 16 MB.", "Keep a reference in the trace.")
            record = self._record(self._client.get_trace(info.trace_id, display=False), place)
        except MlflowException as fault:
            if int(fault.get_http_status_code()) >= _SERVER_FAULT:  # type: ignore[no-untyped-call]  # mlflow's
                raise self._away("read", fault) from fault
            gone = DataError(f"{place} cannot be loaded: {fault}.", "Log the call again.")
            return Arrival(self.config.name, place, info.trace_id, None, gone)
        except DataError as fault:
            return Arrival(self.config.name, place, info.trace_id, None, fault)
        return Arrival(self.config.name, place, info.trace_id, record)

    def _record(self, trace: Trace, place: str) -> dict[str, Any]:
        info = trace.info
        if info.state == TraceState.ERROR:
            raise DataError(f"{place}: the call failed, so there is no output.", "Trace a call that succeeds.")
        roots = {
            "request": _parsed(trace.data.request, f"{place}: the request"),
            "response": _parsed(trace.data.response, f"{place}: the response"),
            "tags": dict(info.tags),
            "metadata": dict(info.trace_metadata),
        }
        record: dict[str, Any] = {field: _found(roots, path) for field, path in self._fields.items()}
        record |= dict(self.config.constants)
        return record | {
            "source": self.config.name,
            "record_id": info.trace_id,
            "time": datetime.fromtimestamp(info.request_time / 1000, UTC).isoformat(),
        }

    def _experiment_id(self, name: str) -> str:
        experiment = self._client.get_experiment_by_name(name)
        if experiment is None or experiment.lifecycle_stage == LifecycleStage.DELETED:
            gone = "is not in MLflow" if experiment is None else "was deleted in MLflow"
            raise NotFoundError(
                f"The source {self.config.name} reads traces of the experiment {name!r}, which {gone}.",
                "Correct `experiments` in the settings, or restore it.",
            )
        return str(experiment.experiment_id)

    def _away(self, what: str, fault: MlflowException) -> StoreError:
        return StoreError(
            f"The traces of the source {self.config.name} cannot be {what}: {fault}.",
            "Check that MLflow runs; the next run tries again.",
        )


def is_trace_id(record_id: str) -> bool:
    """Whether MLflow names traces so."""
    return record_id.startswith("tr-")


def _parsed(text: str | None, name: str) -> Any:
    if text is None:
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as fault:
        raise DataError(f"{name} is not JSON: {fault}.", "Log inputs and outputs that JSON can hold.") from fault


def _found(roots: Mapping[str, Any], path: str) -> Any:
    """What is at `request.KEY.KEY`, `response.KEY`, `tags.TAG` or `metadata.KEY`; None where nothing is."""
    root, _, rest = path.partition(".")
    found = roots.get(root)
    for key in [rest] if root in ("tags", "metadata") else rest.split(".") if rest else []:
        found = found.get(key) if isinstance(found, dict) else None
    return found


def _is_ours(assessment: Any, answer: Answer) -> bool:
    audit_id = (assessment.metadata or {}).get("audit_id", "")
    return bool(assessment.name == FEEDBACK and audit_id == answer.audit_id)
