"""A kill between any two steps loses nothing and duplicates nothing."""

import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress

import pytest
from prefect.settings import PREFECT_API_URL

from gradtrail.flows.audit import audit
from gradtrail.flows.index import index
from gradtrail.flows.ingest import ingest
from gradtrail.lineage.read import queries
from gradtrail.storage.models.audit_runs import AUDIT_EXPERIMENT, AUDIT_TAG, TREND_TAG
from gradtrail.storage.models.registry import CHECKPOINT_TAG
from gradtrail.tasks.audit.audited_model import AuditedModel
from gradtrail.tasks.audit.options import AuditOptions
from gradtrail.tasks.auditing import score_outputs
from gradtrail.tasks.collecting import collect_outputs, pending_outputs
from gradtrail.tasks.govern.verifying import verify_workspace
from gradtrail.tasks.index.opened import method_indexes
from gradtrail.tasks.measuring import measure_outputs
from gradtrail.tasks.report.reported_audits import ShownAudit
from gradtrail.tasks.reporting import write_audit_report

pytestmark = pytest.mark.ci  # processes that are killed and started again

SLOW_INDEX = """
import sys, time
from pathlib import Path
import gradtrail.tasks.index.passes as index_pass
from gradtrail.settings import Settings
from gradtrail.storage.gradients.appending import Appending
from gradtrail.tasks.index.options import IndexOptions
from gradtrail.tasks.indexing import build_index, list_checkpoints

index_pass.LARGEST_BATCH, index_pass.COMMIT_BYTES = 4, 1
home, folder, reference = sys.argv[1:]
settings = Settings(home=home, mlflow_tracking_uri=f"sqlite:///{home}/mlflow.db",
                    allowed_adapters=(reference,), adapter_path=folder)
add = Appending.add
def slow(*arguments, **columns):
    written = add(*arguments, **columns)
    print("appended", flush=True)
    time.sleep(0.2)
    return written
Appending.add = slow
version = "tiny/1"
workspace = settings.workspace()
[checkpoint] = list_checkpoints.fn(workspace, version, False)
build_index.fn(workspace, version, checkpoint, IndexOptions())
"""

FORKED_AUDITS = """
import os, sys
import lancedb, torch
from gradtrail.settings import Settings
from gradtrail.flows.audit import audit

home, folder, reference = sys.argv[1:]
settings = Settings(home=home, mlflow_tracking_uri=f"sqlite:///{home}/mlflow.db",
                    allowed_adapters=(reference,), adapter_path=folder)
torch.set_num_threads(1)
for _ in sys.stdin:
    child = os.fork()
    if child == 0:
        audit(settings.workspace(), "tiny@champion")
        os._exit(0)
    print(child, flush=True)
    os.waitpid(child, 0)
    print("ended", flush=True)
"""


@pytest.fixture
def indexed(indexed):
    """With five outputs that wait."""
    indexed.drop("first.jsonl", *(indexed.record(i) for i in range(5)))
    return indexed


@pytest.mark.parametrize("appends", [1, 4])
def test_a_killed_index_resumes_with_no_gap_and_no_duplicate(ingested, appends):
    tiny = ingested
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW_INDEX, str(tiny.home), str(tiny.folder), tiny.reference],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "MLFLOW_LOGGING_LEVEL": "ERROR"},
    )
    for _ in range(appends):
        assert process.stdout.readline().strip() == "appended"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    [outcome] = index(tiny.workspace, "tiny@champion")
    assert outcome.new
    assert 0 < outcome.rows_resumed < len(tiny.rows)
    assert outcome.rows_resumed + outcome.rows_written == len(tiny.rows)
    table = tiny.workspace.gradients().existing(outcome.index_id)
    stored = [example_id for batch in table.stream() for example_id in batch.example_ids]
    assert sorted(stored) == sorted(row["id"] for row in tiny.rows)
    assert not verify_workspace(tiny.workspace).problems


def _audit_until(tiny, stop_after):
    """Run the audit's steps by hand and stop where a kill would have struck."""
    options = AuditOptions(method="influence")
    index_ids = method_indexes(tiny.workspace, "tiny/1", options.method)
    collect_outputs.fn(tiny.workspace)
    if stop_after == "collect":
        return
    pending = pending_outputs.fn(tiny.workspace, "tiny/1", "emitted")
    audited = AuditedModel(tiny.workspace, "tiny/1", index_ids, options)
    measured = measure_outputs.fn(audited, pending.output_ids)
    if stop_after == "measure":
        return
    audit_id = score_outputs.fn(audited, measured)
    if stop_after == "record":
        return
    write_audit_report.fn(ShownAudit(tiny.workspace, audit_id))


@pytest.mark.parametrize("stop_after", ["collect", "measure", "record", "report"])
def test_an_audit_killed_after_any_step_is_completed_once(indexed, stop_after):
    _audit_until(indexed, stop_after)
    outcome = audit(indexed.workspace, "tiny@champion")
    with indexed.workspace.ledger().read() as connection:
        audits = queries.audits(connection, "tiny/1")
        report = queries.report_of(connection, audits[0].audit_id)
    assert len(audits) == 1
    assert len(audits[0].outputs) == 5
    assert report is not None
    assert (outcome.audit_id or outcome.finished[0]) == audits[0].audit_id
    client = indexed.workspace.registry().client
    experiment = client.get_experiment_by_name(AUDIT_EXPERIMENT)
    assert len(client.search_runs([experiment.experiment_id], f"tags.`{AUDIT_TAG}` LIKE '%'")) == 1
    trend = client.search_runs([experiment.experiment_id], f"tags.`{TREND_TAG}` = 'tiny'")[0]
    assert [point.step for point in client.get_metric_history(trend.info.run_id, "outputs")] == [1]
    again = audit(indexed.workspace, "tiny@champion")
    assert (again.audit_id, again.finished) == ("", ())
    assert not verify_workspace(indexed.workspace).problems


def test_audits_killed_at_three_seeded_moments_are_completed_once(indexed):
    began = time.monotonic()
    audit(indexed.workspace, "tiny@champion")
    duration = time.monotonic() - began
    forking = subprocess.Popen(
        [sys.executable, "-c", FORKED_AUDITS, str(indexed.home), str(indexed.folder), indexed.reference],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "PREFECT_API_URL": PREFECT_API_URL.value()},
    )
    moments = random.Random(0)  # noqa: S311 (moments, not secrets)
    with forking:
        for turn in range(3):
            indexed.drop(f"{turn}.jsonl", *(indexed.record(5 + 3 * turn + i) for i in range(3)))
            forking.stdin.write("audit\n")
            forking.stdin.flush()
            killed = int(forking.stdout.readline())
            time.sleep(moments.uniform(0, duration))
            with suppress(ProcessLookupError):
                os.kill(killed, signal.SIGKILL)
            assert forking.stdout.readline() == "ended\n"
            audit(indexed.workspace, "tiny@champion")
        forking.stdin.close()
    with indexed.workspace.ledger().read() as connection:
        audits = queries.audits(connection, "tiny/1")
        covered = [output_id for each in audits for output_id, _ in each.outputs]
        assert all(queries.report_of(connection, each.audit_id) for each in audits)
    assert sorted(covered) == sorted(f"inbox:out-{i}" for i in range(14))
    assert not verify_workspace(indexed.workspace).problems


def test_an_ingest_that_was_killed_before_it_tagged_the_version_is_completed(ingested):
    tiny = ingested
    registry = tiny.workspace.registry()
    tags = registry.resolve("tiny@champion").tags
    registry.client.delete_model_version_tag("tiny", "1", CHECKPOINT_TAG)
    ingest(tiny.workspace, "tiny@champion")
    assert registry.resolve("tiny@champion").tags == tags
    assert not ingest(tiny.workspace, "tiny@champion").new
