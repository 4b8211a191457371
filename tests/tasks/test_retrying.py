"""What is away for a moment is asked again; what is wrong is said at once."""

import json
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from prefect import flow
from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings

from gradtrail.errors import NotFoundError, StoreError
from gradtrail.storage.models.registry import Registry
from gradtrail.tasks.ingesting import resolve_version

ANSWERS = {
    "registered-models/get": {"registered_model": {"name": "tiny"}},
    "registered-models/alias": {"model_version": {"name": "tiny", "version": "3", "run_id": "r", "source": "runs:/r"}},
    "registered-models/search": {},
}


class Answers(BaseHTTPRequestHandler):
    """The part of MLflow's protocol that finds an alias."""

    asked: list[str]
    known = True

    def do_GET(self):
        name = self.path.partition("?")[0].partition("/mlflow/")[2]
        self.asked.append(name)
        found = ANSWERS[name] if self.known or name.endswith("search") else {"error_code": "RESOURCE_DOES_NOT_EXIST"}
        content = json.dumps(found).encode()
        self.send_response(404 if "error_code" in found else 200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        """Nothing on the screen."""


@pytest.fixture
def away(monkeypatch):
    """An MLflow address that nobody listens on, and a call that lets a server begin there after some seconds."""
    # MLflow's client asks again by itself for two minutes: here it is left to the task.
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    servers = []

    def begin(seconds=0.0, known=True):
        handler = type("Handler", (Answers,), {"asked": [], "known": known})

        def serve():
            time.sleep(seconds)
            server = ThreadingHTTPServer(("127.0.0.1", port), handler)
            servers.append(server)
            server.serve_forever(poll_interval=0.05)

        threads.append(threading.Thread(target=serve))
        threads[-1].start()
        return handler.asked

    threads: list[threading.Thread] = []
    yield f"http://127.0.0.1:{port}", begin
    for thread in threads:
        while thread.is_alive():
            for server in servers:
                server.shutdown()
            thread.join(0.1)
    for server in servers:
        server.server_close()


@flow
def resolving(workspace):
    return resolve_version(workspace, "tiny@champion")


def at(tiny, address):
    return tiny.settings.model_copy(update={"mlflow_tracking_uri": address}).workspace()


def test_a_server_that_is_away_for_a_few_seconds_is_survived(tiny, prefect_server, away):
    address, begin = away
    asked = begin(seconds=1.5)
    with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
        assert resolving(at(tiny, address)).model_version_id == "tiny/3"
    assert asked.count("registered-models/alias") == 1


def test_a_wrong_request_is_not_repeated(tiny, prefect_server, away):
    address, begin = away
    asked = begin(known=False)
    time.sleep(0.2)
    with (
        temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}),
        pytest.raises(NotFoundError, match="No model named tiny"),
    ):
        resolving(at(tiny, address))
    assert asked.count("registered-models/get") == 2  # once for each name that it may be: tiny, and tiny@champion


def test_an_mlflow_that_is_away_is_not_taken_for_one_without_the_model(away):
    with pytest.raises(StoreError, match="does not answer"):
        Registry(away[0]).resolve("tiny@champion")
