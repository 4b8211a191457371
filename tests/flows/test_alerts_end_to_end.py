"""Findings stop a pipeline, reach a webhook that was away, and become a Prefect event that the automation reacts to."""

import json
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from xml.etree import ElementTree

import httpx
import pytest
import yaml
from prefect.events.schemas.automations import AutomationCore
from prefect.server.events.schemas.automations import EventTrigger
from prefect.server.events.schemas.events import ReceivedEvent
from prefect.settings import PREFECT_API_URL
from typer.testing import CliRunner

from gradtrail.cli import app
from gradtrail.errors import FindingsError
from gradtrail.lineage.sql.answering import run_sql

ROOT = Path(__file__).resolve().parents[2]
POLICY = """
[rules.too-much-of-one-licence]
kind = "share_above"
severity = "high"
attribute = "licence"
limit = 0.1

[rules.reproduced]
kind = "not_reproduced"
severity = "high"
"""


@pytest.fixture
def hook():
    """A webhook that says 401 until `open` is set; what it took is in `taken`."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if server.open:
                server.taken.append(json.loads(body))
            self.send_response(200 if server.open else 401)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.open, server.taken = False, []
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.slow  # three flows with servers; each outlet has fast tests of its own
def test_findings_reach_exit_code_webhook_and_prefect(indexed, hook, prefect_events, monkeypatch):
    tiny = indexed
    tiny.drop("a.jsonl", tiny.record(1))
    (tiny.folder / "policy.toml").write_text(POLICY)
    (tiny.folder / "gradtrail.toml").write_text(
        f"""home = "{tiny.home}"
mlflow_tracking_uri = "{tiny.workspace.tracking_uri}"
allowed_adapters = ["{tiny.reference}"]
adapter_path = "{tiny.folder}"
policy = "{tiny.folder / "policy.toml"}"

[[webhooks]]
url = "http://127.0.0.1:{hook.server_port}/hook"
secret_env = "HOOK_SECRET"
"""
    )
    monkeypatch.chdir(tiny.folder)
    monkeypatch.setenv("PREFECT_API_URL", PREFECT_API_URL.value())
    monkeypatch.setenv("HOOK_SECRET", "correct horse")
    gated = ["audit", "tiny@champion", "--method", "grad_dot", "--fail-on", "high", "--junit", "findings.xml"]

    stopped = CliRunner().invoke(app, gated)
    assert isinstance(stopped.exception, FindingsError), stopped.output
    assert stopped.exception.exit_code == 4
    suites = ElementTree.parse(tiny.folder / "findings.xml").getroot()  # noqa: S314 - our own file
    assert (suites.get("tests"), suites.get("failures")) == ("2", "1")
    assert json.loads((tiny.folder / "findings.json").read_text())["failures"] == 1
    assert hook.taken == []
    page = (ROOT / "docs" / "alerts.md").read_text("utf-8")
    waiting = re.search(r"```sql\n(.*?)```", page, re.DOTALL).group(1)
    [due] = run_sql(tiny.workspace.snapshot, waiting).to_pylist()
    assert due["outlet"].startswith("webhook:127.0.0.1:")

    hook.open = True
    again = CliRunner().invoke(app, gated)
    assert isinstance(again.exception, FindingsError), "a second try, with nothing new, is stopped too"
    [told] = hook.taken
    assert told["audit_id"] == due["audit_id"]
    assert run_sql(tiny.workspace.snapshot, waiting).num_rows == 0
    assert [finding["rule"] for finding in told["findings"]] == ["too-much-of-one-licence"]
    assert run_sql(tiny.workspace.snapshot, told["findings"][0]["sql"]).num_rows == 1

    event = _event(f"gradtrail.audit.{due['audit_id']}")
    assert event["payload"]["findings"]["high"] == 1
    roles = {each["prefect.resource.role"] for each in event["related"]}
    assert {"model-version", "flow-run"} <= roles
    [automation] = yaml.safe_load((ROOT / "deploy" / "automations.yaml").read_text())["automations"]
    assert AutomationCore.model_validate(automation).enabled
    received = ReceivedEvent.model_validate({**event, "received": event["occurred"]})
    trigger = EventTrigger.model_validate(automation["trigger"])
    assert trigger.covers(received)
    low = {**event["resource"], "gradtrail.worst_severity": "low"}
    assert not trigger.covers(ReceivedEvent.model_validate({**event, "received": event["occurred"], "resource": low}))


def _event(resource_id):
    """The one event about a resource, once the server has it."""
    asked = {"filter": {"event": {"name": ["gradtrail.audit.findings"]}, "resource": {"id": [resource_id]}}}
    until = time.monotonic() + 90
    while time.monotonic() < until:
        found = httpx.post(f"{PREFECT_API_URL.value()}/events/filter", json=asked, timeout=60).json()["events"]
        if found:
            [event] = found
            return event
        time.sleep(1)
    raise AssertionError("the event did not arrive")
