"""From sources into the ledger: every output once, whatever is killed, late, twice, full or refused on the way."""

import json
import sqlite3
import subprocess
import sys
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta

import mlflow
import pytest
from mlflow import MlflowClient
from prefect.states import Failed

from gradtrail.durations import in_words
from gradtrail.errors import GradtrailError, NotFoundError, StoreError
from gradtrail.lineage.read.clocks import clock_behind_seconds
from gradtrail.storage.sources.config import SourceConfig
from gradtrail.storage.sources.inbox_erasure import remove_records
from gradtrail.storage.sources.spool import open_spool
from gradtrail.storage.sources.traces import TraceSource
from gradtrail.tasks.answering import answer_traces
from gradtrail.tasks.collect.collecting import WaitingOutputs, require_sources
from gradtrail.tasks.collect.source_states import list_sources
from gradtrail.tasks.collecting import collect_outputs, collect_source
from gradtrail.tasks.retrying import is_transient


def record(number, **changes):
    made = {
        "record_id": f"r{number}",
        "model": "digits",
        "version": 1,
        "time": f"2026-02-01T00:{number // 60:02d}:{number % 60:02d}+00:00",
        "prediction": number % 3,
    }
    return made | changes


def drop(workspace, name, *records):
    workspace.inbox.mkdir(exist_ok=True)
    (workspace.inbox / name).write_text("".join(json.dumps(each) + "\n" for each in records))


def collect(known, name="inbox"):
    [source] = [each for each in known.workspace.output_sources if each.name == name]
    return collect_source.fn(known.workspace, source)


@pytest.fixture
def table(known, tmp_path):
    """A sqlite table of outputs, a function that adds to it, and a workspace that reads it."""
    path = tmp_path / "outputs.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE made (id INTEGER, time TEXT, prediction INTEGER, model TEXT, version INTEGER)")

    def add(*rows):
        with sqlite3.connect(path) as connection:
            connection.executemany("INSERT INTO made VALUES (?, ?, 1, 'digits', 1)", rows)

    source = SourceConfig("made", "sql", f"sqlite:///{path}", table="made", time_column="time", id_column="id")
    return known.with_sources(source), add


def test_what_is_new_is_recorded_once_and_the_watermark_moves_only_then(table):
    known, add = table
    add(*((number, f"2026-02-{number:02d}T00:00:00Z") for number in range(1, 11)))
    assert len(collect(known, "made").new_output_ids) == 10
    [mark] = known.sql("SELECT source, kind, reached::VARCHAR, seen, taken, revision FROM source_watermark")
    assert mark == ("made", "sql", "2026-02-10 00:00:00+00", 10, 10, 1)
    events = known.sql("SELECT count(*) FROM event")
    assert collect(known, "made").new_output_ids == ()
    assert known.sql("SELECT count(*) FROM event") == events
    # Late by twelve hours, inside the overlap; and an old one again.
    add((20, "2026-02-09T12:00:00Z"), (10, "2026-02-10T00:00:00Z"))
    assert collect(known, "made").new_output_ids == ("made:20",)
    assert known.sql("SELECT seen, revision FROM source_watermark") == [(11, 2)]


# Imports once, and forks for every moment that it is told.
KILLED = """
import json, os, sys
from gradtrail.tasks.collect import collecting
from gradtrail.tasks.core.workspace import Workspace
from gradtrail.storage.sources.config import SourceConfig
from gradtrail.storage.sources.spool import Spool

def die(*arguments, **named):
    os._exit(9)

described = json.loads(sys.argv[1])
sources = tuple(SourceConfig(**each) for each in described.pop("sources"))
workspace = Workspace(**described, sources=sources)
for moment in sys.stdin:
    if child := os.fork():
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
        continue
    if moment.strip() == "before recording":
        collecting.Recording._record = die
    elif moment.strip() == "after recording":
        Spool.release = die
    else:
        collecting.record_watermark = die
    collecting.collect_source(workspace, sources[0])
    os._exit(0)
"""


@pytest.mark.ci  # processes that are killed
def test_a_kill_around_recording_and_advancing_loses_nothing_and_doubles_nothing(table):
    known, add = table
    described = json.dumps(asdict(known.workspace))
    recorded = 0
    command = [sys.executable, "-c", KILLED, described]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as collecting:
        for number, moment in enumerate(("before recording", "after recording", "before advancing"), start=1):
            add(*((10 * number + each, f"2026-02-{number:02d}T00:00:{each:02d}Z") for each in range(5)))
            print(moment, file=collecting.stdin, flush=True)
            assert collecting.stdout.readline().strip() == "9"
            collected = collect(known, "made")
            recorded += 5
            assert known.sql("SELECT count(*), count(DISTINCT record_id) FROM output") == [(recorded, recorded)]
            assert collected.waiting == 0
            assert known.sql("SELECT seen, taken FROM source_watermark") == [(recorded, recorded)]
            assert collect(known, "made").new_output_ids == ()


def test_a_full_run_leaves_the_rest_to_the_next(table):
    known, add = table
    known = known.with_sources(replace(known.workspace.sources[0], most_per_run=4))
    add(*((number, f"2026-02-01T00:00:{number:02d}Z") for number in range(10)))
    assert [len(collect(known, "made").new_output_ids) for _ in range(4)] == [4, 4, 2, 0]
    lowest = replace(known.workspace.sources[0], name="least", sampling="lowest_confidence", sample_size=6)
    known = known.with_sources(lowest)
    runs = [collect(known, "least") for _ in range(3)]
    assert runs[0].waits == (WaitingOutputs("digits/1", 2, ingested=True),)
    assert [(len(run.new_output_ids), run.waiting, run.sampled_out, run.without_confidence) for run in runs] == [
        (4, 2, 4, 10),
        (2, 0, 0, 0),
        (0, 0, 0, 0),
    ]


def test_outputs_of_a_version_that_is_not_ingested_wait_and_hold_nothing_up(known):
    drop(known.workspace, "a.jsonl", record(1, version=2), record(2))
    assert collect(known).new_output_ids == ("inbox:r2",)
    assert collect(known).waits == (WaitingOutputs("digits/2", 1, ingested=False),)
    [listed] = list_sources(known.workspace)
    assert (listed.seen, listed.pending, listed.waiting) == (2, 1, {"digits/2": 1})
    known.ingest(2)
    (known.workspace.inbox / "a.jsonl").unlink()  # what waits is kept, whatever becomes of the file
    assert collect(known).new_output_ids == ("inbox:r1",)
    assert collect(known).waiting == 0


def test_refused_records_are_quarantined_once_and_a_deleted_payload_stays_deleted(known):
    drop(known.workspace, "a.jsonl", record(1), record(2, prediction=float("nan")))
    first = collect(known)
    assert [name for name, _ in first.refused] == ["r2"]
    [(payload,)] = known.sql("SELECT payload_sha256 FROM output")
    known.workspace.payloads().delete(payload)
    drop(known.workspace, "b.jsonl", record(1), record(1, prediction=2), record(2, prediction=float("nan")))
    again = collect(known)
    assert again.new_output_ids == ()
    assert [cause.partition(".")[0] for _, cause in again.refused] == ["b", "b"]
    assert payload not in known.workspace.payloads()
    assert known.sql("SELECT count(*) FROM quarantine") == [(3,)]


def test_without_the_spool_sources_are_read_again_from_their_watermarks(table):
    known, add = table
    add((1, "2026-02-01T00:00:00Z"))
    collect(known, "made")
    known.workspace.spool.unlink()
    add((2, "2026-02-01T00:00:01Z"))
    assert collect(known, "made").new_output_ids == ("made:2",)
    assert known.sql("SELECT seen, taken FROM source_watermark") == [(2, 2)]


def test_a_database_that_is_away_is_worth_another_try_and_one_that_refuses_is_not(table, tmp_path):
    known, _ = table
    [source] = known.workspace.sources
    no_database = tmp_path / "made.txt"
    no_database.write_text("This is no database. " * 100)
    for changed, transient in (
        (replace(source, location="postgresql+psycopg://nobody@127.0.0.1:1/none"), True),
        (replace(source, table="absent"), False),
        (replace(source, location=f"sqlite:///{no_database}"), False),
    ):
        with pytest.raises(GradtrailError, match=r"made|absent") as caught:
            collect_source.fn(known.workspace, changed)
        state = Failed(data=caught.value)
        assert is_transient(collect_source, None, state) is transient
    with pytest.raises(StoreError, match=r"1 of the sources .* made: away"):
        require_sources([("made", "away")])


def test_what_sampling_left_out_stays_out_while_a_file_has_it_whatever_is_erased_beside_it(known):
    sampled = SourceConfig("inbox", "inbox", sampling="first", sample_size=2)
    known = known.with_sources(sampled)
    inbox, home = known.workspace.inbox, known.workspace.home_source
    drop(known.workspace, "old.jsonl", *(record(number) for number in range(8)))
    assert collect(known).new_output_ids == ("inbox:r0", "inbox:r1")
    drop(known.workspace, "new.jsonl", record(9, time="2026-06-01T00:00:00Z"))
    assert collect(known).new_output_ids == ("inbox:r9",)
    assert remove_records(home, {"inbox:r0"}).records == 1
    assert collect(known).new_output_ids == ()
    # Delivered once more, and kept there when the first file goes.
    drop(known.workspace, "once more.jsonl", record(7), record(1))
    assert collect(known).new_output_ids == ()
    (inbox / "old.jsonl").unlink()
    assert collect(known).new_output_ids == ()
    assert remove_records(home, {"inbox:r1"}).records == 1
    last = collect(known)
    assert (last.new_output_ids, last.sampled_out) == ((), 0)
    assert known.sql("SELECT seen, taken, sampled_out FROM source_watermark") == [(9, 3, 6)]
    with open_spool(known.workspace.spool) as spool:
        left = spool.decided("inbox", [f"inbox:r{number}" for number in range(10)])
    assert list(left) == ["inbox:r7"]


def test_a_spool_of_an_earlier_release_is_read_on(table):
    known, add = table
    add((1, "2026-02-01T00:00:00Z"))
    with sqlite3.connect(known.workspace.spool) as connection:
        connection.execute(
            "CREATE TABLE decided (origin TEXT NOT NULL, key TEXT NOT NULL, verdict TEXT NOT NULL, "
            "cause TEXT NOT NULL, produced_at TEXT, PRIMARY KEY (origin, key))"
        )
        connection.execute("INSERT INTO decided VALUES ('made', 'made:1', 'sampled_out', '', '2026-02-01')")
    assert collect(known, "made").new_output_ids == ()
    add((2, "2026-02-01T00:00:01Z"))
    assert collect(known, "made").new_output_ids == ("made:2",)


@pytest.mark.filterwarnings("ignore:Logger 'prefect.task_runs'")
def test_a_source_that_fails_in_an_unforeseen_way_stops_no_other(table, prefect_server):
    known, add = table
    [source] = known.workspace.sources
    odd = replace(source, name="odd", overlap_hours=1e300)
    known = known.with_sources(odd, source)
    drop(known.workspace, "a.jsonl", record(1, record_id="\ud800"), record(2))
    add((1, "2026-02-01T00:00:00Z"))
    collected = collect_outputs.fn(known.workspace)
    assert set(collected.new_output_ids) == {"made:1", "inbox:r2"}
    assert [name for name, _ in collected.refused] == ["row 1"]
    assert [name for name, _ in collected.failed] == ["odd"]
    assert collected.failed[0][1].startswith("OverflowError: ")
    with pytest.raises(StoreError, match=r"1 of the sources could not be .* odd: OverflowError: "):
        require_sources(collected.failed)


@pytest.fixture
def traced(known, monkeypatch):
    """A workspace that reads traces, a function that logs one, and a client to look at them."""
    monkeypatch.setenv("MLFLOW_ENABLE_ASYNC_TRACE_LOGGING", "false")
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(known.workspace.tracking_uri)
    client = MlflowClient(known.workspace.tracking_uri)
    experiment_id = client.create_experiment("production", artifact_location=str(known.workspace.root / "traces"))

    def log(inputs, outputs, version="1"):
        tags = {"gradtrail.audit": "pending", "gradtrail.model": "digits", "gradtrail.version": version}
        root = client.start_trace("predict", inputs=inputs, tags=tags, experiment_id=experiment_id)
        client.end_trace(root.trace_id, outputs=outputs)
        return root.trace_id

    source = SourceConfig(
        "production",
        "traces",
        experiments=("production",),
        fields={"inputs": "request.inputs", "prediction": "response.prediction", "confidence": "response.confidence"},
    )
    yield known.with_sources(source), log, client
    mlflow.set_tracking_uri(before)


def test_a_pending_trace_is_audited_and_answered_once(traced):
    known, log, client = traced
    good = log({"inputs": [1.0, 2.0]}, {"prediction": 2, "confidence": 0.4})
    text = log("only text", "an answer")
    nan = log({"inputs": [float("nan")]}, {"prediction": 1})
    waits = log({"inputs": [1.0]}, {"prediction": 0}, version="2")
    collected = collect(known, "production")
    assert collected.new_output_ids == (f"production:{good}",)
    assert sorted(name for name, _ in collected.refused) == sorted([text, nan])
    tags = {
        each: client.get_trace(each, display=False).info.tags["gradtrail.audit"] for each in (good, text, nan, waits)
    }
    assert list(tags.values()) == ["collected", "refused", "refused", "collected"]
    [told] = client.get_trace(text, display=False).info.assessments
    assert "has no field 'prediction'" in told.rationale.replace("\\", "")
    assert collect(known, "production").new_output_ids == ()

    assert answer_traces.fn(known.workspace) == 0  # nothing is audited yet
    audit_id = known.report(f"production:{good}")
    assert answer_traces.fn(known.workspace) == 1
    [feedback] = client.get_trace(good, display=False).info.assessments
    assert (feedback.name, feedback.feedback.value, feedback.metadata["audit_id"]) == (
        "gradtrail.audit",
        "audited",
        audit_id,
    )
    link = "http://mlflow.example/#/experiments/7/runs/audit-run/artifacts/report.html"
    assert feedback.rationale == f"[report]({link})"
    # A run that was killed between feedback and tag finds the feedback and only sets the tag.
    client.set_trace_tag(good, "gradtrail.audit", "collected")
    assert answer_traces.fn(known.workspace) == 1
    found = client.get_trace(good, display=False).info
    assert found.tags["gradtrail.audit"] == "done"
    assert len(found.assessments) == 1
    assert answer_traces.fn(known.workspace) == 0

    known.ingest(2)
    assert collect(known, "production").new_output_ids == (f"production:{waits}",)


def test_a_trace_that_cannot_be_measured_is_told_why(traced):
    known, log, client = traced
    trace_id = log({"inputs": [1.0]}, {"prediction": 2})
    collect(known, "production")
    known.ledger.record_quarantine("measuring", f"production:{trace_id}", "The loss is not finite.")
    assert answer_traces.fn(known.workspace) == 1
    info = client.get_trace(trace_id, display=False).info
    assert info.tags["gradtrail.audit"] == "refused"
    assert info.assessments[0].rationale == "The loss is not finite."
    audit_id = known.report(f"production:{trace_id}")
    assert answer_traces.fn(known.workspace) == 0
    assert answer_traces.fn(known.workspace, retry_refused=True) == 1
    info = client.get_trace(trace_id, display=False).info
    assert info.tags["gradtrail.audit"] == "done"
    assert [each.metadata["audit_id"] for each in info.assessments if each.feedback.value == "audited"] == [audit_id]


def test_an_experiment_that_is_not_there_is_named(traced):
    known, _, client = traced
    gone = replace(known.workspace.sources[0], experiments=("elsewhere",))
    with pytest.raises(NotFoundError, match="'elsewhere', which is not in MLflow"):
        TraceSource(gone, client).tagged("pending")
    client.delete_experiment(client.create_experiment("elsewhere"))
    with pytest.raises(NotFoundError, match=r"'elsewhere', which was deleted in MLflow\..*restore it"):
        TraceSource(gone, client).tagged("pending")


def test_what_a_wrong_clock_holds_back_is_taken_once_it_is_right(known, table):
    soon = datetime.now(UTC) + timedelta(minutes=5)
    config = SourceConfig("inbox", "inbox", clock_skew_minutes=4.0)
    behind = known.with_sources(config)
    drop(known.workspace, "a.jsonl", record(1), record(2, time=soon.isoformat()), record(3, time=soon.isoformat()))
    first = collect(behind)
    assert (first.new_output_ids, first.refused) == (("inbox:r1",), ())
    assert first.waits == (WaitingOutputs("digits/1", 2, True, 2, soon),)
    assert collect(behind).new_output_ids == ()
    # The same to this code as a clock that is put forward by five minutes.
    righted = known.with_sources(replace(config, clock_skew_minutes=9.0))
    assert collect(righted).new_output_ids == ("inbox:r2", "inbox:r3")
    made, add = table
    add((7, soon.isoformat()))
    waiting = made.with_sources(replace(made.workspace.sources[0], clock_skew_minutes=4.0))
    assert collect(waiting, "made").waits[0].ahead == 1
    assert collect(made.with_sources(replace(made.workspace.sources[0], clock_skew_minutes=9.0)), "made").waits == ()


def test_a_clock_before_the_newest_event_is_reported(known):
    known.workspace.inbox.mkdir()
    assert collect(known).clock_behind_seconds == 0
    with known.ledger.read() as connection:
        [(newest,)] = connection.execute("SELECT max(recorded_at) FROM event").fetchall()
        assert clock_behind_seconds(connection, newest - timedelta(hours=3)) == 3 * 3600
        assert clock_behind_seconds(connection, newest) == 0
    assert in_words(3 * 3600) == "3 hours"
