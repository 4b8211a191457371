"""A team's installation on loopback: Postgres, an MLflow server and a Prefect server on it, a worker, a cron."""

import json
import os
import pwd
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import httpx
import mlflow
import pytest
import yaml

from gradtrail.lineage.read import queries
from gradtrail.settings import load_settings
from gradtrail.storage.models.audit_runs import AUDIT_EXPERIMENT, AUDIT_TAG, LATEST_AUDIT_TAG
from gradtrail.tasks.govern.verifying import verify_workspace

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
POSTGRES_HOMES = ("/usr/lib/postgresql/15/bin", "/usr/local/bin")
PATIENCE = 240
MARK = "GRADTRAIL_TEST_FOLDER"


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for(found, seconds=PATIENCE, pause=0.5):
    """What `found` returns as soon as it is true."""
    deadline = time.monotonic() + seconds
    while not (result := found()):
        assert time.monotonic() < deadline, f"nothing came within {seconds} s"
        time.sleep(pause)
    return result


def answers(address):
    try:
        return httpx.get(address, timeout=5).is_success
    except httpx.TransportError:
        return False


@contextmanager
def process(command, log, *, ends_by=signal.SIGTERM, **options):
    """A process with all of its group, ended at the end of the block."""
    with log.open("ab") as stream:
        started = subprocess.Popen(command, stdout=stream, stderr=stream, start_new_session=True, **options)
    try:
        yield started
    finally:
        for sent in (ends_by, signal.SIGKILL):
            with suppress(ProcessLookupError, subprocess.TimeoutExpired):
                os.killpg(started.pid, sent)
                started.wait(20)
        started.wait()


def end_flows(mark):
    """End what a worker has started: flow runs are in sessions of their own, and outlive a worker that is stopped."""
    wanted = f"{MARK}={mark}".encode()
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if int(folder.name) != os.getpid() and wanted in (folder / "environ").read_bytes().split(b"\0"):
                os.kill(int(folder.name), signal.SIGKILL)


@pytest.fixture(scope="module")
def postgres():
    """The address of a Postgres with databases `mlflow` and `prefect`."""
    programs = next((Path(each) for each in POSTGRES_HOMES if (Path(each) / "initdb").is_file()), None)
    if programs is None:
        missing = f"Postgres is not installed in {' or '.join(POSTGRES_HOMES)}"
        if os.environ.get("GRADTRAIL_REQUIRE_POSTGRES") == "1":
            pytest.fail(f"{missing}, and GRADTRAIL_REQUIRE_POSTGRES=1 asks for it")
        pytest.skip(f"{missing}; set GRADTRAIL_REQUIRE_POSTGRES=1 to fail here")
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="gradtrail-postgres-") as name:
        folder = Path(name)
        user = []
        if os.geteuid() == 0:
            # Postgres refuses to run as root.
            owner = pwd.getpwnam("nobody")
            os.chown(folder, owner.pw_uid, owner.pw_gid)
            user = ["runuser", "-u", "nobody", "--"]
        log, data = folder / "log", folder / "data"
        log.touch()
        subprocess.run(
            [*user, programs / "initdb", "-D", data, "-U", "gradtrail", "-A", "trust", "-E", "UTF8", "--no-sync"],
            check=True, capture_output=True, cwd=folder,
        )  # fmt: skip
        server = [*user, programs / "postgres", "-D", data, "-p", str(port), "-k", folder, "-h", "127.0.0.1", "-F"]
        with process(server, log, ends_by=signal.SIGINT, cwd=folder):
            ready = [programs / "pg_isready", "-h", "127.0.0.1", "-p", str(port)]
            wait_for(lambda: subprocess.run(ready, capture_output=True, check=False).returncode == 0, 60)
            for database in ("mlflow", "prefect"):
                create = [programs / "createdb", "-h", "127.0.0.1", "-p", str(port), "-U", "gradtrail", database]
                subprocess.run(create, check=True)
            yield f"gradtrail@127.0.0.1:{port}"


@pytest.fixture(scope="module")
def team(postgres, tmp_path_factory):
    """Address of an MLflow server, and the environment of those who talk to it and to a Prefect server beside it."""
    folder = tmp_path_factory.mktemp("servers")
    mlflow, prefect = (f"http://127.0.0.1:{free_port()}" for _ in range(2))
    variables = {
        **os.environ,
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "PREFECT_API_DATABASE_CONNECTION_URL": f"postgresql+asyncpg://{postgres}/prefect",
        "PREFECT_HOME": str(folder / "prefect"),
        "PREFECT_API_URL": f"{prefect}/api",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "MLFLOW_ENABLE_ASYNC_TRACE_LOGGING": "false",
        "MLFLOW_TRACKING_URI": mlflow,
    }
    module = [sys.executable, "-m"]
    with ExitStack() as stack:
        stack.enter_context(
            process(
                [
                    *module,
                    *container_command(
                        "mlflow",
                        host="127.0.0.1",
                        port=mlflow.rpartition(":")[2],
                        backend_store_uri=f"postgresql+psycopg://{postgres}/mlflow",
                        artifacts_destination=str(folder / "artifacts"),
                        allowed_hosts=mlflow.removeprefix("http://"),
                    ),
                    *("--workers", "1"),
                ],
                folder / "mlflow.log",
                env=variables,
            )
        )
        stack.enter_context(
            process(
                [*module, *container_command("prefect", host="127.0.0.1", port=prefect.rpartition(":")[2])],
                folder / "prefect.log",
                env=variables,
            )
        )
        wait_for(lambda: answers(f"{mlflow}/health") and answers(f"{prefect}/api/health"))
        yield mlflow, variables


def container_command(service, **changed):
    """What the container of a service runs, with some of its options changed; those are named as in Python."""
    command = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"][service]["command"]
    words = [part for word in command for part in word.split("=", 1)]
    start = next(place for place, word in enumerate(words) if word.startswith("--"))
    options = dict(zip(words[start::2], words[start + 1 :: 2], strict=True))
    assert {f"--{name.replace('_', '-')}" for name in changed} <= options.keys()
    options |= {f"--{name.replace('_', '-')}": value for name, value in changed.items()}
    return [*words[:start], *(part for option in options.items() for part in option)]


def runs_of_audits(mlflow):
    """Runs of audits that are finished, with their tags, as MLflow's REST interface has them."""
    experiments, runs = f"{mlflow}/api/2.0/mlflow/experiments/get-by-name", f"{mlflow}/api/2.0/mlflow/runs/search"
    found = httpx.get(experiments, params={"experiment_name": AUDIT_EXPERIMENT}, timeout=30)
    if found.status_code == httpx.codes.NOT_FOUND:
        return []
    body = {"experiment_ids": [found.json()["experiment"]["experiment_id"]]}
    listed = httpx.post(runs, json=body, timeout=30).raise_for_status().json().get("runs", [])
    tagged = [(run["info"], {tag["key"]: tag["value"] for tag in run["data"]["tags"]}) for run in listed]
    return [(info, tags) for info, tags in tagged if AUDIT_TAG in tags and info["status"] == "FINISHED"]


def model_version(mlflow, number):
    """A version of the model `tiny` and its tags, as MLflow's REST interface has them."""
    address = f"{mlflow}/api/2.0/mlflow/model-versions/get"
    found = httpx.get(address, params={"name": "tiny", "version": number}, timeout=30).raise_for_status().json()
    return found["model_version"], {tag["key"]: tag["value"] for tag in found["model_version"]["tags"]}


def audited(workspace):
    """What audits examined, one entry for each time; nothing while another process writes its first lines."""
    ledger = workspace.ledger()
    if not ledger.paths.database.is_file():
        return []
    with ledger.read() as connection:
        return [output_id for audit in queries.audits(connection) for output_id, _ in audit.outputs]


@pytest.fixture
def project(tmp_path, migrated_mlflow, tiny_project, team, monkeypatch):
    """A user's project that a team's servers look after, configured by a gradtrail.toml in its folder."""
    mlflow, variables = team
    tiny = tiny_project(tmp_path, migrated_mlflow)
    plain = {
        "home": str(tiny.home), "mlflow_tracking_uri": mlflow, "mlflow_url": mlflow, "adapter_path": str(tiny.folder),
        "allowed_adapters": [tiny.reference], "watch_seconds": 10,
    }  # fmt: skip
    model = {"reference": "tiny@champion", "audit": "* * * * *", "calibrate": False}
    source = {"name": "production", "kind": "traces", "experiments": ["production"]}
    lines = [f"{key} = {json.dumps(value)}" for key, value in plain.items()]
    for table, values in (("models", model), ("sources", source)):
        lines += [f"[[{table}]]", *(f"{key} = {json.dumps(value)}" for key, value in values.items())]
    lines.append('fields = { inputs = "request.inputs", prediction = "response.prediction" }')
    (tiny.folder / "gradtrail.toml").write_text("\n".join(lines))
    monkeypatch.chdir(tiny.folder)
    for name in ("MLFLOW_ENABLE_ASYNC_TRACE_LOGGING", "MLFLOW_TRACKING_URI"):
        monkeypatch.setenv(name, variables[name])
    tiny.settings = load_settings()
    tiny.workspace = tiny.settings.workspace()
    return tiny


@pytest.fixture
def deployed(project, team):
    """A worker that deploys the schedules of the project first: what the container `worker` runs."""
    _, variables = team
    programs = {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{variables['PATH']}", MARK: str(project.folder)}

    @contextmanager
    def worker():
        command = [DEPLOY / "start-worker.sh"]
        try:
            with process(command, project.folder / "worker.log", env={**variables, **programs}, cwd=project.folder):
                yield
        finally:
            end_flows(project.folder)

    return worker


def log_trace(client, record):
    """What the serving code logs: a trace that asks for an audit."""
    experiment = client.get_experiment_by_name("production")
    experiment_id = experiment.experiment_id if experiment else client.create_experiment("production")
    tags = {"gradtrail.audit": "pending", "gradtrail.model": "tiny", "gradtrail.version": str(record["version"])}
    inputs = {"inputs": record["inputs"]}
    before = mlflow.get_tracking_uri()
    # Said once in a process, by another test perhaps, it counts more than the environment does.
    mlflow.set_tracking_uri(client.tracking_uri)
    try:
        root = client.start_trace("predict", inputs=inputs, tags=tags, experiment_id=experiment_id)
        client.end_trace(root.trace_id, outputs={"prediction": record["prediction"]})
    finally:
        mlflow.set_tracking_uri(before)
    return root.trace_id


@pytest.mark.slow  # three servers and a worker have to start, and a cron fires at a full minute
def test_what_is_deployed_audits_by_itself_and_pins_the_version_while_the_alias_moves(project, deployed, team):
    mlflow, variables = team
    client = project.workspace.registry().client
    project.register()
    project.drop("first.jsonl", *(project.record(number) for number in range(4)))
    trace_id = log_trace(client, project.record(4))
    expected = [*(f"inbox:out-{number}" for number in range(4)), f"production:{trace_id}"]
    with deployed():
        wait_for(lambda: runs_of_audits(mlflow), pause=2)
        trace = wait_for(lambda: (t := client.get_trace(trace_id, display=False)).info.assessments and t, pause=2)

    assert sorted(audited(project.workspace)) == sorted(expected)
    [(info, tags)] = runs_of_audits(mlflow)
    version, of_version = model_version(mlflow, 1)
    assert of_version[LATEST_AUDIT_TAG] == tags[AUDIT_TAG]
    link = f"{mlflow}/#/experiments/{info['experiment_id']}/runs/{info['run_id']}"
    assert link in version["description"]
    assert mlflow in tags["mlflow.note.content"]
    [feedback] = trace.info.assessments
    assert feedback.metadata["audit_id"] == tags[AUDIT_TAG]
    address = f"{mlflow}/api/2.0/mlflow/artifacts/list"
    listed = httpx.get(address, params={"run_id": info["run_id"]}, timeout=30).raise_for_status().json()["files"]
    assert "report.html" in {each["path"] for each in listed}

    project.register(aliases=[])
    project.drop("second.jsonl", *(project.record(number) for number in range(5, 45)))
    command = [sys.executable, "-m", "gradtrail.cli", "audit", "tiny@champion"]
    with process(command, project.folder / "audit.log", env=variables, cwd=project.folder) as running:
        wait_for(lambda: recorded(project.workspace, "inbox:out-5"), pause=0.05)
        client.set_registered_model_alias("tiny", "champion", "2")
        in_the_middle = running.poll() is None
        assert running.wait(PATIENCE) == 0
    assert in_the_middle
    with project.workspace.ledger().read() as connection:
        newest = queries.latest_audit(connection)
    report = json.loads((project.workspace.reports / newest.audit_id / "report.json").read_text())
    assert report["model_version"]["model_version_id"] == "tiny/1"
    assert client.get_model_version_by_alias("tiny", "champion").version == "2"
    assert len(audited(project.workspace)) == len(set(audited(project.workspace))) == 45
    assert not verify_workspace(project.workspace).problems


def recorded(workspace, output_id):
    """Whether the ledger has an output."""
    with workspace.ledger().read() as connection:
        return queries.outputs(connection, [output_id])
