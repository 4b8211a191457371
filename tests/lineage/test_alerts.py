"""Alerts reach a webhook signed and at least once, whatever it answers and whoever is killed."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime, timedelta, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from prefect.logging import disable_run_logger

from gradtrail.errors import UsageError
from gradtrail.lineage.events.alerts import DELIVERED, DUE, Alert, record_alerts, undelivered_alerts
from gradtrail.lineage.ledger.writing import Ledger
from gradtrail.lineage.sql.answering import run_sql
from gradtrail.storage.webhooks import AwayError, RefusedError, Webhook, post, signed_headers
from gradtrail.tasks.alert.deliveries import alert_document
from gradtrail.tasks.alerting import deliver_alerts
from gradtrail.tasks.core.workspace import Workspace

SECRET = "correct horse"  # noqa: S105 - of this test only
PAGE = (Path(__file__).parents[2] / "docs" / "alerts.md").read_text("utf-8")


@dataclass
class Receiver:
    """A real HTTP server: `answers` are the next statuses, 200 after them; a number below 0 keeps silent so long."""

    url: str = ""
    answers: list[float] = field(default_factory=list)
    received: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    kills: int = 0


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    monkeypatch.setenv("HOOK_SECRET", SECRET)
    state = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            state.received.append((dict(self.headers), body))
            if state.kills:
                os.kill(state.kills, signal.SIGKILL)
                state.kills = 0
                return
            answer = state.answers.pop(0) if state.answers else 200
            if answer < 0:
                time.sleep(-answer)
                return
            self.send_response(int(answer))
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{server.server_port}/hook"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def send(receiver: Receiver, **options: float) -> None:
    given = {"timeout_seconds": 5.0, "first_pause_seconds": 0.01, **options}
    post(Webhook(receiver.url, "HOOK_SECRET"), b'{"a": 1}', "the key", **given)


@pytest.mark.parametrize("secret", [SECRET, "whsec_" + base64.b64encode(bytes(range(32))).decode()])
def test_what_is_posted_is_signed_as_the_documentation_says(
    secret: str, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    snippet = next(code for code in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if "is_genuine" in code)
    names: dict[str, object] = {}
    exec(snippet, names)  # noqa: S102 - the documentation's own code
    is_genuine = names["is_genuine"]
    assert callable(is_genuine)
    monkeypatch.setenv("HOOK_SECRET", secret)
    send(receiver)
    [(headers, body)] = receiver.received
    assert is_genuine(headers, body, secret)
    assert not is_genuine(headers, body + b" ", secret)
    assert not is_genuine(headers, body, "another")
    assert not is_genuine(headers | {"webhook-id": "another"}, body, secret)
    late = str(int(headers["webhook-timestamp"]) - 1)
    assert not is_genuine(headers | {"webhook-timestamp": late}, body, secret)
    assert headers["Idempotency-Key"] == headers["webhook-id"] == "the key"


def test_the_signature_is_that_of_the_specification_at_a_known_moment_in_any_time_zone() -> None:
    for zone in (UTC, timezone(timedelta(hours=5, minutes=30))):
        headers = signed_headers(b"key", "msg", datetime.fromtimestamp(1_700_000_000.9, zone), b'{"\xc3\xa9": 1}')
        expected = hmac.new(b"key", b'msg.1700000000.{"\xc3\xa9": 1}', hashlib.sha256).digest()
        assert headers == {
            "webhook-id": "msg",
            "webhook-timestamp": "1700000000",
            "webhook-signature": f"v1,{base64.b64encode(expected).decode()}",
        }


@pytest.mark.parametrize("secret", [SECRET, "whsec_" + base64.b64encode(bytes(range(32))).decode()])
def test_receivers_of_0_2_still_find_the_signature_that_they_verify(
    secret: str, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOOK_SECRET", secret)
    send(receiver)
    [(headers, body)] = receiver.received
    signed = headers["Gradtrail-Timestamp"].encode() + b"." + body
    assert abs(time.time() - int(headers["Gradtrail-Timestamp"])) < 60
    assert headers["Gradtrail-Signature"] == f"v1={hmac.new(secret.encode(), signed, hashlib.sha256).hexdigest()}"


@pytest.mark.parametrize("encoded", ["", "no base64!", "YWJ"])
def test_a_marked_secret_that_is_no_base64_is_named_and_not_shown(
    encoded: str, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOOK_SECRET", f"whsec_{encoded}")
    with pytest.raises(RefusedError, match=r"HOOK_SECRET.* has no base64 after whsec_\.") as caught:
        send(receiver)
    assert receiver.received == []
    assert not encoded or encoded not in str(caught.value)


def test_a_webhook_that_is_away_is_tried_four_times(receiver: Receiver) -> None:
    receiver.answers = [503, 429, 408]
    send(receiver)
    assert len(receiver.received) == 4
    receiver.answers = [500] * 4
    with pytest.raises(AwayError, match=r"webhook:127\.0\.0\.1:[0-9a-f]{16} answered 500"):
        send(receiver)
    assert len(receiver.received) == 8
    assert {headers["Idempotency-Key"] for headers, _ in receiver.received} == {"the key"}


def test_silence_and_no_connection_are_being_away(receiver: Receiver) -> None:
    receiver.answers = [-0.6] * 4
    with pytest.raises(AwayError, match="ReadTimeout"):
        send(receiver, timeout_seconds=0.1)
    with pytest.raises(AwayError, match="ConnectError") as caught:
        post(Webhook("http://127.0.0.1:9/token-in-path", "HOOK_SECRET"), b"{}", "key", first_pause_seconds=0.01)
    assert "token-in-path" not in str(caught.value)


@pytest.mark.parametrize("status", [302, 400, 401, 404])
def test_a_refusal_is_not_repeated_at_once(status: int, receiver: Receiver) -> None:
    receiver.answers = [status]
    with pytest.raises(RefusedError, match=str(status)):
        send(receiver)
    assert len(receiver.received) == 1


def test_without_its_secret_nothing_is_posted(receiver: Receiver) -> None:
    with pytest.raises(RefusedError, match="NO_SUCH_VARIABLE"):
        post(Webhook(receiver.url, "NO_SUCH_VARIABLE"), b"{}", "key")
    assert receiver.received == []


def test_an_address_in_a_variable_is_read_when_something_is_sent_and_shown_nowhere(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    webhook = Webhook("env:HOOK_URL", "HOOK_SECRET")
    assert webhook.outlet == "webhook:env:HOOK_URL"
    for value, said in (
        ("", "HOOK_URL.* is not set"),
        ("hooks/token", "HOOK_URL.* no http"),
        ("https://a\n", "no http"),
    ):
        monkeypatch.setenv("HOOK_URL", value)
        with pytest.raises(RefusedError, match=said) as caught:
            post(webhook, b"{}", "key")
        assert not value or value.strip() not in str(caught.value)
    monkeypatch.setenv("HOOK_URL", receiver.url)
    post(webhook, b'{"a": 1}', "the key")
    assert [body for _, body in receiver.received] == [b'{"a": 1}']
    receiver.answers = [403]
    with pytest.raises(RefusedError, match="webhook:env:HOOK_URL refused") as refused:
        post(webhook, b"{}", "key")
    assert receiver.url not in str(refused.value)
    assert receiver.url not in repr(webhook)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"url": "ftp://example.org"}, "no http or https"),
        ({"url": "nothing"}, "no http or https"),
        ({"url": "env:"}, "no http or https"),
        ({"url": "env:https://example.org"}, "no http or https"),
        ({"secret_env": ""}, "secret_env"),
        ({"least_severity": "severe"}, "least_severity 'severe'"),
    ],
)
def test_a_webhook_that_cannot_work_is_refused(given: dict[str, str], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        Webhook(**{"url": "https://example.org", "secret_env": "SECRET", **given})  # type: ignore[arg-type]


@pytest.fixture
def due(story_ledger: Ledger, receiver: Receiver) -> tuple[Workspace, Alert]:
    """A home with one audit whose alert is due."""
    home = story_ledger.paths.database.parent
    webhook = Webhook(receiver.url, "HOOK_SECRET", "low")
    workspace = Workspace(str(home), "", "", "", "http://mlflow.example", webhooks=(webhook,))
    audit_id = run_sql(story_ledger.paths.snapshot, "SELECT audit_id FROM audit").to_pylist()[0]["audit_id"]
    alert = Alert(audit_id, webhook.outlet)
    assert record_alerts(workspace.ledger(), [alert], DUE)
    assert not record_alerts(workspace.ledger(), [alert], DUE)
    return workspace, alert


def delivered(workspace: Workspace) -> int:
    with disable_run_logger():
        return deliver_alerts.fn(workspace)


def states(workspace: Workspace) -> list[str]:
    with workspace.ledger().read() as connection:
        return [row[0] for row in connection.execute("SELECT state FROM alert ORDER BY state").fetchall()]


def test_a_due_alert_is_delivered_once_with_findings_root_and_link(
    due: tuple[Workspace, Alert], receiver: Receiver
) -> None:
    workspace, alert = due
    assert delivered(workspace) == 1
    assert delivered(workspace) == 0
    [(headers, body)] = receiver.received
    told = json.loads(body)
    assert told == alert_document(workspace, alert, workspace.webhooks[0])
    assert told["idempotency_key"] == headers["Idempotency-Key"] == alert.idempotency_key
    assert re.fullmatch("[0-9a-f]{64}", told["audit_root"])
    assert told["report"].startswith("http://mlflow.example/#/experiments/0/runs/run-of-audit")
    assert sum(told["finding_counts"].values()) >= len(told["findings"]) > 0
    assert states(workspace) == [DELIVERED, DUE]


def test_a_webhook_that_was_away_or_refused_gets_it_from_the_next_run(
    due: tuple[Workspace, Alert], receiver: Receiver
) -> None:
    workspace, _ = due
    receiver.answers = [400]
    assert delivered(workspace) == 0
    with workspace.ledger().read() as connection:
        assert undelivered_alerts(connection) == [due[1]]
    assert delivered(workspace) == 1
    assert len(receiver.received) == 2


def test_a_webhook_that_the_settings_no_longer_name_is_left_alone(
    due: tuple[Workspace, Alert], receiver: Receiver
) -> None:
    workspace, _ = due
    without = Workspace(**{**{name: getattr(workspace, name) for name in asdict(workspace)}, "webhooks": ()})
    assert delivered(without) == 0
    assert delivered(workspace) == 1


def test_what_is_due_to_an_address_still_is_once_the_address_is_in_a_variable(
    due: tuple[Workspace, Alert], receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace, alert = due
    moved = replace(workspace, webhooks=(Webhook("env:HOOK_URL", "HOOK_SECRET", "low"),))
    assert delivered(moved) == 0, "the variable is not set: the alert stays due and nothing fails"
    monkeypatch.setenv("HOOK_URL", receiver.url)
    assert delivered(moved) == 1
    assert [headers["Idempotency-Key"] for headers, _ in receiver.received] == [alert.idempotency_key]
    assert states(workspace) == [DELIVERED, DUE]

    noted = Alert(alert.audit_id, moved.webhooks[0].outlet)
    record_alerts(workspace.ledger(), [noted], DUE)
    monkeypatch.delenv("HOOK_URL")
    assert delivered(moved) == 0
    monkeypatch.setenv("HOOK_URL", receiver.url + "/another-token")
    assert delivered(moved) == 1
    assert len(receiver.received) == 2


def test_the_page_s_question_names_model_versions_that_could_not_be_prepared(story_ledger: Ledger) -> None:
    question = re.findall(r"```sql\n(.*?)```", PAGE, re.DOTALL)[1]
    story_ledger.record_quarantine("registry", "digits/9", "its weights are damaged")
    story_ledger.publish_snapshot()
    expected = [{"model_version_id": "digits/9", "cause": "its weights are damaged"}]
    assert run_sql(story_ledger.paths.snapshot, question).to_pylist() == expected


def test_a_kill_between_posting_and_remembering_repeats_with_the_same_key(
    due: tuple[Workspace, Alert], receiver: Receiver, tmp_path: Path
) -> None:
    workspace, alert = due
    script = (
        "import json, sys\n"
        "from gradtrail.storage.webhooks import Webhook\n"
        "from gradtrail.tasks.alerting import deliver_alerts\n"
        "from gradtrail.tasks.core.workspace import Workspace\n"
        "given = json.load(open(sys.argv[1]))\n"
        "given['webhooks'] = tuple(Webhook(**each) for each in given['webhooks'])\n"
        "sys.stdin.readline()\n"
        "deliver_alerts.fn(Workspace(**given))\n"
    )
    (tmp_path / "workspace.json").write_text(json.dumps(asdict(workspace)))
    process = subprocess.Popen([sys.executable, "-c", script, tmp_path / "workspace.json"], stdin=subprocess.PIPE)
    receiver.kills = process.pid
    process.communicate(b"go\n", timeout=240)
    assert process.returncode == -signal.SIGKILL
    assert states(workspace) == [DUE]
    assert delivered(workspace) == 1
    assert [headers["Idempotency-Key"] for headers, _ in receiver.received] == [alert.idempotency_key] * 2
    assert states(workspace) == [DELIVERED, DUE]
