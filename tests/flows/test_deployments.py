"""The deployment file describes flows that exist, with parameters that they take as plain JSON."""

import dataclasses
import importlib
import json
import re
import subprocess
from pathlib import Path

import pytest
import yaml
from prefect.settings import PREFECT_API_URL
from prefect.testing.cli import invoke_and_assert

from gradtrail.flows.audit import audit
from gradtrail.flows.ingest import ingest
from gradtrail.lineage.read import queries
from gradtrail.serving import SERVER_RETENTION, prefect_file
from gradtrail.settings import load_settings

pytestmark = pytest.mark.ci  # a server and a worker of their own

ROOT = Path(__file__).resolve().parents[2]
DEPLOYMENTS = yaml.safe_load((ROOT / "deploy" / "prefect.yaml").read_text())


@pytest.mark.parametrize("deployment", DEPLOYMENTS["deployments"], ids=lambda deployment: deployment["name"])
def test_every_deployment_names_a_flow_and_parameters_it_accepts(deployment):
    module, _, name = deployment["entrypoint"].partition(":")
    flow = getattr(importlib.import_module(module), name)
    accepted = flow.validate_parameters(deployment["parameters"])
    assert accepted.keys() <= {"references", "reference", "target", "method"}, (
        "names, and nothing that says what runs or where"
    )


def test_the_file_is_what_the_command_prints_for_the_configuration_beside_it(monkeypatch):
    monkeypatch.chdir(ROOT / "deploy")
    assert yaml.safe_load(prefect_file(load_settings())) == DEPLOYMENTS


def test_the_compose_file_names_only_what_there_is():
    compose = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text())
    services = compose["services"]
    named = set(re.findall(r"^([A-Z_]+)=", (ROOT / "deploy" / ".env.example").read_text(), re.MULTILINE))
    assert set(re.findall(r"\$\{([A-Z_]+)", json.dumps(compose))) == named
    for service in services.values():
        assert service["image"] in ("postgres:16", "gradtrail")
        assert set(service.get("depends_on", ())) <= services.keys()
        assert "healthcheck" in service or service["command"] == ["/srv/start-worker.sh"]
        for volume in service.get("volumes", ()):
            origin = volume.partition(":")[0]
            # The one folder that is the user's to make.
            assert origin in compose["volumes"] or origin == "./adapters" or (ROOT / "deploy" / origin).is_file()
    [built] = [service["build"] for service in services.values() if "build" in service]
    assert (ROOT / "deploy" / built["context"] / built["dockerfile"]).samefile(ROOT / "deploy" / "Dockerfile")
    copied = re.findall(r"deploy/[\w.-]+|requirements[\w.-]*\.lock", (ROOT / "deploy" / "Dockerfile").read_text())
    assert all((ROOT / name).is_file() for name in copied)


def test_the_servers_of_both_ways_forget_old_runs_alike():
    services = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text())["services"]
    assert services["prefect"]["environment"].items() >= SERVER_RETENTION.items()
    text = (ROOT / "deploy" / "README.md").read_text()
    assert all(f"{name}={value}" in text for name, value in SERVER_RETENTION.items())


def test_what_users_put_beside_the_compose_file_is_in_no_commit_and_no_image():
    worker = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text())["services"]["worker"]
    [secrets] = worker["env_file"]
    assert secrets["required"] is False
    theirs = [".env", secrets["path"], "adapters/my_adapter.py"]
    assert "./adapters:/srv/adapters:ro" in worker["volumes"]
    command = ["git", "check-ignore", "--no-index", *(f"deploy/{name}" for name in [*theirs, ".env.example"])]
    ignored = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    assert ignored == [f"deploy/{name}" for name in theirs]
    left_out = (ROOT / ".dockerignore").read_text().splitlines()
    assert {"deploy/.env", f"deploy/{secrets['path']}", "deploy/adapters"} <= set(left_out)
    assert not any(line.startswith("!") or "example" in line for line in left_out)


def test_flows_run_from_plain_json_parameters(tiny, prefect_server):
    tiny.register()
    plain = json.loads(json.dumps(dataclasses.asdict(tiny.workspace)))
    assert ingest(plain, "tiny@champion").new
    with pytest.raises(Exception, match="gradtrail index tiny/1"):
        audit(plain, "tiny@champion")


def test_a_worker_runs_the_deployed_audit(indexed, monkeypatch):
    tiny = indexed
    monkeypatch.setenv("PREFECT_API_URL", PREFECT_API_URL.value())
    tiny.drop("a.jsonl", tiny.record(1))
    pool = f"gradtrail-{tiny.module[-6:]}"
    plan = (ROOT / "deploy" / "prefect.yaml").read_text().replace("    name: gradtrail\n", f"    name: {pool}\n")
    (tiny.folder / "deploy").mkdir()
    (tiny.folder / "deploy" / "prefect.yaml").write_text(plan)
    settings = {
        "home": str(tiny.home), "mlflow_tracking_uri": tiny.workspace.tracking_uri, "adapter_path": str(tiny.folder),
        "allowed_adapters": [tiny.reference], "models": [],
    }  # fmt: skip
    lines = [f"{key} = {json.dumps(value)}" for key, value in settings.items() if value]
    file = tiny.folder / "gradtrail.toml"
    file.write_text("\n".join([*lines, "[[models]]", 'reference = "tiny@champion"']))
    monkeypatch.setenv("GRADTRAIL_SETTINGS_FILE", str(file))
    for command in (
        ["work-pool", "create", "--type", "process", pool],
        ["--no-prompt", "deploy", "--name", "audit-my-model-champion", "--prefect-file", "deploy/prefect.yaml"],
        [
            "deployment", "run", "gradtrail-scheduled-audit/audit-my-model-champion",
            "--param", "reference=tiny@champion",
        ],
        ["worker", "start", "--pool", pool, "--run-once"],
    ):  # fmt: skip
        invoke_and_assert(command, temp_dir=str(tiny.folder), expected_code=0)
    with tiny.workspace.ledger().read() as connection:
        [audited] = queries.audits(connection, "tiny/1")
        assert queries.report_of(connection, audited.audit_id) is not None
