"""The server of reports: what it gives, and everything that it does not."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path

import pytest

from gradtrail.errors import UsageError
from gradtrail.reports.index.serving import HOST, report_server

AUDIT = "a" * 64


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    reports = tmp_path / "reports"
    (reports / AUDIT).mkdir(parents=True)
    (reports / "index.html").write_text("<h1>Übersicht</h1>", encoding="utf-8")
    (reports / AUDIT / "report.html").write_text("<h1>report</h1>")
    (reports / AUDIT / "report.json").write_text("{}")
    (reports / AUDIT / "attributions.parquet").write_bytes(b"PAR1" * 300_000)
    (reports / AUDIT / ".report.html.x.partial").write_text("half")
    (reports / AUDIT / ".hidden.html").write_text("hidden")
    (reports / AUDIT / "notes.txt").write_text("not a report")
    (tmp_path / "ledger.html").write_text("secret")
    (reports / "outside.html").symlink_to(tmp_path / "ledger.html")
    return reports


@pytest.fixture
def port(folder: Path) -> Iterator[int]:
    with report_server(folder, 0, ["reports.example"]) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


def ask(port: int, path: str, method: str = "GET", host: str = HOST) -> tuple[HTTPResponse, bytes]:
    connection = HTTPConnection(HOST, port, timeout=20)
    connection.putrequest(method, path, skip_host=True)
    connection.putheader("Host", host)
    connection.endheaders()
    response = connection.getresponse()
    body = response.read()
    connection.close()
    return response, body


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/", "text/html; charset=utf-8"),
        ("/index.html?from=mlflow", "text/html; charset=utf-8"),
        (f"/{AUDIT}/report.html", "text/html; charset=utf-8"),
        (f"/{AUDIT}/report.json", "application/json"),
        (f"/{AUDIT}/attributions.parquet", "application/vnd.apache.parquet"),
    ],
)
def test_reports_are_given_whole_as_what_they_are(port: int, folder: Path, path: str, kind: str) -> None:
    response, body = ask(port, path)
    assert response.status == 200
    assert response.headers["Content-Type"] == kind
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert body == (folder / (path.split("?", maxsplit=1)[0].strip("/") or "index.html")).read_bytes()
    head, nothing = ask(port, path, "HEAD")
    assert (head.status, nothing) == (200, b"")
    assert head.headers["Content-Length"] == str(len(body))


@pytest.mark.parametrize(
    "path",
    [
        "/../ledger.html",
        f"/{AUDIT}/../../ledger.html",
        "/%2e%2e/ledger.html",
        "/..%2fledger.html",
        "/..%5cledger.html",
        "//etc/hostname.html",
        "/outside.html",
        f"/{AUDIT}",
        f"/{AUDIT}/",
        f"/{AUDIT}/.hidden.html",
        f"/{AUDIT}/.report.html.x.partial",
        f"/{AUDIT}/notes.txt",
        f"/{AUDIT}/report.html%00.json",
        "/nothing.html",
        f"/{'x' * 5000}.html",
    ],
)
def test_nothing_else_is_given_and_no_folder_is_listed(port: int, path: str) -> None:
    response, body = ask(port, path)
    assert response.status == 404
    assert b"secret" not in body
    assert b"report.html" not in body


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
def test_nothing_can_be_written(port: int, method: str) -> None:
    assert ask(port, "/index.html", method)[0].status == 405


def test_pages_elsewhere_cannot_reach_it_through_a_name_of_theirs(port: int) -> None:
    assert ask(port, "/", host="evil.example")[0].status == 400
    assert ask(port, "/", host=f"localhost:{port}")[0].status == 200
    assert ask(port, "/", host="reports.example")[0].status == 200


def test_a_port_that_is_taken_is_named_with_the_remedy(port: int, folder: Path) -> None:
    with pytest.raises(UsageError, match=f"port {port}.*--port"), report_server(folder, port):
        pass
