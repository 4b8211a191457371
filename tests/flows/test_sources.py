"""Audits over several sources at once: what can be read is audited, what cannot is named at the end."""

from dataclasses import replace

import mlflow
import pytest
from mlflow import MlflowClient

from gradtrail.errors import StoreError
from gradtrail.flows.audit import audit
from gradtrail.lineage.read import queries
from gradtrail.storage.sources.config import SourceConfig
from gradtrail.tasks.audit.options import AuditOptions
from gradtrail.tasks.govern.verifying import verify_workspace


def test_inbox_and_traces_are_audited_together_answered_and_a_broken_source_stops_neither(
    indexed, monkeypatch, tmp_path
):
    tiny = indexed
    monkeypatch.setenv("MLFLOW_ENABLE_ASYNC_TRACE_LOGGING", "false")
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(tiny.workspace.tracking_uri)
    try:
        client = MlflowClient(tiny.workspace.tracking_uri)
        experiment = client.create_experiment("serving", artifact_location=str(tmp_path / "traces"))
        made = tiny.record(0)
        tags = {"gradtrail.audit": "pending", "gradtrail.model": "tiny", "gradtrail.version": "1"}
        root = client.start_trace("predict", inputs=made["inputs"], tags=tags, experiment_id=experiment)
        client.end_trace(root.trace_id, outputs=made["prediction"])
    finally:
        mlflow.set_tracking_uri(before)
    tiny.drop("day.jsonl", tiny.record(1), tiny.record(2))
    traces = SourceConfig("serving", "traces", experiments=("serving",))
    broken = SourceConfig("broken", "sql", f"sqlite:///{tmp_path}/empty.db", table="absent", time_column="time")
    sampled = SourceConfig("inbox", "inbox", sampling="first", sample_size=1)
    workspace = replace(tiny.workspace, sources=(sampled, traces, broken))
    options = AuditOptions(method="grad_dot")
    with pytest.raises(StoreError, match=r"1 of the sources could not .* broken: There is no table absent"):
        audit(workspace, "tiny@champion", options)
    with workspace.ledger().read() as connection:
        [audited] = queries.audits(connection)
    assert {output_id for output_id, _ in audited.outputs} == {"inbox:out-1", f"serving:{root.trace_id}"}
    report = (workspace.reports / audited.audit_id / "report.html").read_text()
    said = "1 of 2 outputs that the source inbox has brought so far were taken to be examined; sampling left out 1."
    assert said in report
    answered = client.get_trace(root.trace_id, display=False).info
    assert answered.tags["gradtrail.audit"] == "done"
    assert "report.html" in answered.assessments[0].rationale
    mended = replace(workspace, sources=(sampled, traces))
    assert audit(mended, "tiny@champion", options).audit_id == ""
    assert not verify_workspace(mended).problems
