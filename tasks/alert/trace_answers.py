"""Answering: a trace whose output was audited gets feedback with a link to the report, once."""

from __future__ import annotations

from gradtrail.lineage.read import queries
from gradtrail.lineage.read.deliveries import reported_outputs
from gradtrail.storage.models.audit_runs import AuditRun, markdown_text
from gradtrail.storage.sources.traces import COLLECTED, DONE, REFUSED, Answer, TraceSource
from gradtrail.tasks.core.measured_outputs import MEASURING
from gradtrail.tasks.core.workspace import Workspace


def answer_traces(workspace: Workspace, retry_refused: bool = False) -> int:
    """Tell every collected trace that was audited, or could not be measured, and return how many were told.

    The tag of a trace is the queue: what a killed run left unanswered still says `collected`, and is found by the next.
    With `retry_refused` those that were told a refusal are told what became of them since.

    Raises:
        StoreError: MLflow cannot be read or written now.
        NotFoundError: an experiment of a source is gone.
    """
    answered = 0
    for source in workspace.output_sources:
        if source.kind == "traces":
            traces = TraceSource(source, workspace.registry().client)
            queues = (COLLECTED, REFUSED) if retry_refused else (COLLECTED,)
            waiting = [info.trace_id for queue in queues for info in traces.tagged(queue)]
            for answer in _answers(workspace, source.name, waiting):
                traces.answer(answer)
                answered += 1
    return answered


def _answers(workspace: Workspace, source: str, trace_ids: list[str]) -> list[Answer]:
    if not trace_ids:
        return []
    by_output = {f"{source}:{trace_id}": trace_id for trace_id in trace_ids}
    links = workspace.links()
    with workspace.ledger().read() as connection:
        reported = reported_outputs(connection, list(by_output))
        unmeasured = {
            each.record_id: each.cause for kind in MEASURING.values() for each in queries.quarantined(connection, kind)
        }
    answers = []
    for output_id, trace_id in by_output.items():
        if output_id in reported:
            report = reported[output_id]
            run = AuditRun(report.mlflow_run_id, report.mlflow_experiment_id)
            url = links.output(report.audit_id, output_id, run)
            answers.append(Answer(trace_id, DONE, "audited", f"[report]({url})", report.audit_id))
        elif output_id in unmeasured:
            answers.append(Answer(trace_id, REFUSED, "refused", markdown_text(unmeasured[output_id])))
    return answers
