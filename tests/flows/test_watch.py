"""Watching: what is new in the registry is made ready once; what is broken stops nothing and is said."""

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest
import yaml
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import ConcurrencyLimitStrategy, ConcurrencyOptions
from prefect.settings import PREFECT_API_URL
from prefect.states import Completed, Pending, Running

from gradtrail.errors import GradtrailError, UsageError
from gradtrail.flows.audit import audit
from gradtrail.flows.watch import PreparationError, watch
from gradtrail.lineage.read import queries
from gradtrail.serving import AUTHENTICATION_FILE, deployments, prefect_file, prefect_server
from gradtrail.settings import load_settings
from gradtrail.storage.models.registry import ADAPTER_TAG
from gradtrail.tasks.core.watched import WatchedModel
from gradtrail.tasks.ingest.preparations import ATTEMPTS, SOURCE

ALIAS = WatchedModel("tiny@champion", calibrate=False)
EVERY = WatchedModel("tiny", calibrate=False)


def ingested(tiny) -> list[str]:
    with tiny.workspace.ledger().read() as connection:
        return [version.model_version_id for version in queries.model_versions(connection)]


def test_new_versions_are_made_ready_once(tiny, prefect_server):
    tiny.register()
    assert watch(tiny.workspace, [ALIAS]).prepared == ("tiny/1",)
    assert watch(tiny.workspace, [ALIAS]) == watch(tiny.workspace, [EVERY])
    tiny.register(aliases=[])
    assert not watch(tiny.workspace, [ALIAS]).prepared
    assert watch(tiny.workspace, [EVERY]).prepared == ("tiny/2",)
    assert ingested(tiny) == ["tiny/1", "tiny/2"]


def test_a_broken_version_is_said_and_rests_while_others_go_on(tiny, prefect_server):
    tiny.register()
    broken = tiny.register(aliases=[])
    registry = tiny.workspace.registry()
    registry.client.delete_model_version_tag("tiny", str(broken.version), ADAPTER_TAG)
    tiny.register(aliases=["champion"])

    with pytest.raises(PreparationError, match=r"Not ready: .*absent@champion.* tiny/2: .*which adapter") as failed:
        watch(tiny.workspace, [WatchedModel("absent@champion"), EVERY])
    outcome = failed.value.outcome
    assert outcome.prepared == ("tiny/1", "tiny/3")
    assert [name for name, _ in outcome.failed] == ["absent@champion", "tiny/2"]
    assert "does not say which adapter" in dict(outcome.failed)["tiny/2"]
    with tiny.workspace.ledger().read() as connection:
        [quarantined] = queries.quarantined(connection, SOURCE)
    assert quarantined.record_id == "tiny/2"

    assert watch(tiny.workspace, [EVERY]).failed == ()
    attempts = tiny.workspace.root / ATTEMPTS
    known = json.loads(attempts.read_text())
    known["tiny/2"]["rests_until"] = datetime.now(UTC).isoformat()
    attempts.write_text(json.dumps(known))
    registry.client.set_model_version_tag("tiny", str(broken.version), ADAPTER_TAG, tiny.reference)
    assert watch(tiny.workspace, [EVERY]).prepared == ("tiny/2",)
    assert json.loads(attempts.read_text()) == {}


def test_training_data_that_fails_stops_no_other_model_and_a_corrected_manifest_is_indexed(tiny, prefect_server):
    module = tiny.folder / f"{tiny.module}.py"
    module.write_text(
        module.read_text().replace(
            "        return [", "        if DATA.get('gone'): raise KeyError('rows')\n        return ["
        )
    )
    tiny.register()
    data = module.with_suffix(".json")
    kept = data.read_text()
    data.write_text(json.dumps({**json.loads(kept), "gone": True}))
    sys.modules.pop(tiny.module, None)
    with pytest.raises(PreparationError, match=r"tiny/1: .*KeyError: 'rows'") as failed:
        watch(tiny.workspace, [ALIAS, WatchedModel("absent@champion")])
    assert len(failed.value.outcome.failed) == 2
    data.write_text(kept)
    sys.modules.pop(tiny.module, None)
    (tiny.workspace.root / ATTEMPTS).unlink()
    assert watch(tiny.workspace, [ALIAS]).prepared == ("tiny/1",)
    tiny.rows[0]["attributes"]["licence"] = "GPL-3.0"
    data.write_text(json.dumps({"rows": tiny.rows}))
    sys.modules.pop(tiny.module, None)
    tiny.register()
    assert watch(tiny.workspace, [ALIAS]).prepared == ("tiny/2",)
    with tiny.workspace.ledger().read() as connection:
        versions = [queries.model_version(connection, name) for name in ("tiny/1", "tiny/2")]
        built = queries.indexes_of(connection, versions[0].checkpoint_ids[-1])
    assert versions[0].checkpoint_ids == versions[1].checkpoint_ids
    assert [each.dataset_version_id for each in built] == [each.dataset_version_id for each in versions]


def configured(tiny, monkeypatch, **model) -> None:
    settings = {
        "home": str(tiny.home),
        "mlflow_tracking_uri": tiny.workspace.tracking_uri,
        "adapter_path": str(tiny.folder),
        "watch_seconds": 5,
    }
    lines = [f"{key} = {json.dumps(value)}" for key, value in settings.items()]
    lines += [f'allowed_adapters = ["{tiny.reference}"]', "[[models]]"]
    lines += [f"{key} = {json.dumps(value)}" for key, value in model.items()]
    (tiny.folder / "gradtrail.toml").write_text("\n".join(lines))
    monkeypatch.chdir(tiny.folder)


def test_one_configuration_makes_both_schedules(tiny, monkeypatch):
    configured(
        tiny, monkeypatch, reference="tiny@champion", audit="*/5 * * * *", time_zone="Asia/Tokyo", calibrate=False
    )
    settings = load_settings()
    planned = deployments(settings)
    assert [(each.name, each.cron, each.interval_seconds) for each in planned] == [
        ("watch", "", 5),
        ("audit-tiny-champion", "*/5 * * * *", 0),
    ]
    written = yaml.safe_load(prefect_file(settings, "team"))
    assert written["deployments"][1]["schedules"] == [{"cron": "*/5 * * * *", "timezone": "Asia/Tokyo"}]
    assert [each["work_pool"]["name"] for each in written["deployments"]] == ["team", "team"]
    names = {"reference": "tiny@champion", "target": "emitted", "method": "auto"}
    assert [each["parameters"] for each in written["deployments"]] == [{}, names], "all else is in local settings"


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ({"reference": "a@b", "cron": "x"}, "cron"),
        ({}, "reference"),
        ({"reference": "a@b", "time_zone": "Mars"}, "zone 'Mars'"),
    ],
)
def test_an_unusable_model_table_is_named(tiny, monkeypatch, model, said):
    configured(tiny, monkeypatch, **model)
    with pytest.raises(UsageError, match=said):
        load_settings()


def test_no_two_deployments_have_one_name(tiny):
    references = ["digits@champion", "digits@champion", "fraud@eu", "fraud-eu", "诈骗", "风险", "alone@champion"]
    targets = ["emitted", "label", *["emitted"] * 5]
    models = tuple(WatchedModel(name, target=target) for name, target in zip(references, targets, strict=True))
    names = [each.name for each in deployments(tiny.settings.model_copy(update={"models": models}))]
    assert len(set(names)) == 8
    assert names[-1] == "audit-alone-champion"
    with pytest.raises(UsageError, match=r"digits@champion twice"):
        deployments(tiny.settings.model_copy(update={"models": (models[0], models[0])}))


def client_of(address):
    return SyncPrefectClient(address, auth_string=os.environ["PREFECT_API_AUTH_STRING"])


@pytest.mark.slow  # two servers have to start
def test_a_run_that_was_cut_off_with_its_server_does_not_stop_its_schedule(tiny, monkeypatch):
    monkeypatch.setenv("PREFECT_HOME", "as before, after this test")
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    with prefect_server(tiny.settings) as address, client_of(address) as client:
        assert httpx.post(f"{address}/flow_runs/filter", json={}).status_code == httpx.codes.UNAUTHORIZED
        kept = tiny.workspace.root / "prefect" / AUTHENTICATION_FILE
        assert (kept.read_text(), kept.stat().st_mode & 0o777) == (os.environ["PREFECT_API_AUTH_STRING"], 0o600)
        foreign = {"Origin": "http://elsewhere.example", "Access-Control-Request-Method": "POST"}
        answer = httpx.options(f"{address}/flow_runs/filter", headers=foreign)
        assert "access-control-allow-origin" not in answer.headers
        flow_id = client.create_flow_from_name("cut-off")
        alone = ConcurrencyOptions(collision_strategy=ConcurrencyLimitStrategy.CANCEL_NEW)
        deployment = client.create_deployment(flow_id, "alone", concurrency_limit=1, concurrency_options=alone)
        with monkeypatch.context() as another:
            another.delenv("PREFECT_API_URL")
            with pytest.raises(GradtrailError, match="Another process looks after"), prefect_server(tiny.settings):
                pass
        cut_off = client.create_flow_run_from_deployment(deployment)
        client.set_flow_run_state(cut_off.id, Pending())
        client.set_flow_run_state(cut_off.id, Running())
        late = client.create_flow_run_from_deployment(deployment)
        assert client.set_flow_run_state(late.id, Pending()).state.is_cancelled()
    with prefect_server(tiny.settings) as address, client_of(address) as client:
        assert client.read_flow_run(cut_off.id).state.is_crashed()
        free = client.create_flow_run_from_deployment(deployment)
        client.set_flow_run_state(free.id, Pending())
        assert client.read_flow_run(free.id).state.is_pending()


@pytest.mark.slow  # a server has to start
def test_the_server_forgets_runs_of_long_ago_and_keeps_the_others(tiny, monkeypatch):
    monkeypatch.setenv("PREFECT_HOME", "as before, after this test")
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.setenv("PREFECT_SERVER_SERVICES_DB_VACUUM_LOOP_SECONDS", "1")
    with prefect_server(tiny.settings) as address, client_of(address) as client:
        old, new = (client.create_flow_run(audit, state=Completed()) for _ in range(2))
        with closing(sqlite3.connect(tiny.home / "prefect" / "prefect.db", timeout=30)) as database, database:
            days = "UPDATE flow_run SET end_time = datetime('now', ?) WHERE id = ?"
            database.execute(days, ["-15 days", str(old.id)])
            database.execute(days, ["-13 days", str(new.id)])
        deadline = time.monotonic() + 120
        while old.id in (left := [each.id for each in client.read_flow_runs()]) and time.monotonic() < deadline:
            time.sleep(1)
        assert left == [new.id]


SERVING = """
import sys, time
from gradtrail.serving import prefect_server
from gradtrail.settings import Settings
with prefect_server(Settings(home=sys.argv[1])) as address:
    print(address, flush=True)
    time.sleep(600)
"""


@pytest.mark.slow  # a server has to start
@pytest.mark.skipif(shutil.which("setpriv") is None, reason="only Linux's setpriv ends a child with its parent")
def test_a_killed_process_leaves_no_server_behind(tiny):
    environment = {key: value for key, value in os.environ.items() if key not in ("PREFECT_API_URL", "PREFECT_HOME")}
    command = [sys.executable, "-c", SERVING, str(tiny.home)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as serving:
        address = serving.stdout.readline().strip()
        assert httpx.get(f"{address}/health").is_success
        serving.kill()
    deadline = time.monotonic() + 60
    while _answers(address) and time.monotonic() < deadline:
        time.sleep(0.5)
    assert not _answers(address)


def _answers(address) -> bool:
    try:
        return httpx.get(f"{address}/health", timeout=5).is_success
    except httpx.TransportError:
        return False


def test_without_models_there_is_nothing_to_serve(tiny):
    with pytest.raises(UsageError, match=r"\[\[models\]\]"):
        deployments(tiny.settings)


@pytest.mark.slow  # a cron fires at a full minute, and two servers have to start
def test_one_command_watches_and_audits(tiny, prefect_server, monkeypatch):
    configured(tiny, monkeypatch, reference="tiny@champion", audit="* * * * *", calibrate=False)
    tiny.register()
    tiny.drop("a.jsonl", tiny.record(1))
    environment = {key: value for key, value in os.environ.items() if key not in ("PREFECT_API_URL", "PREFECT_HOME")}
    assert PREFECT_API_URL.value() not in environment.values()
    # Where the tests run in the background, a shell lets them ignore what a person's Ctrl-C sends.
    command = ["env", "--default-signal=INT", sys.executable, "-m", "gradtrail.cli", "serve"]
    serving = subprocess.Popen(command, cwd=tiny.folder, env=environment)
    try:
        deadline = time.monotonic() + 240
        reports: list[Path] = []
        while not reports and time.monotonic() < deadline:
            time.sleep(2)
            reports = list(tiny.workspace.reports.glob("*/report.html"))
        assert reports
    finally:
        serving.send_signal(signal.SIGINT)
        serving.wait(60)
    assert ingested(tiny) == ["tiny/1"]
