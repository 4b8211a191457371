"""Serving the folder of reports to the browsers of this machine: read-only, nothing but reports, no listing."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

from gradtrail.addresses import INDEX_PAGE
from gradtrail.errors import UsageError

HOST = "127.0.0.1"
_CONTENT_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".json": "application/json",
    ".parquet": "application/vnd.apache.parquet",
}
_PIECE = 1 << 20


@contextmanager
def report_server(folder: Path, port: int, public_hosts: Collection[str] = ()) -> Iterator[ThreadingHTTPServer]:
    """A server on the loopback address, bound and not yet answering: call `serve_forever` on it.

    Args:
        folder: the reports; links that lead out of it are not followed.
        port: 0 takes any that is free; see `server_port`.
        public_hosts: names by which a proxy asks for it, besides those of this machine.

    Raises:
        UsageError: the port is taken, or not allowed.
    """
    handler = partial(_Handler, folder.resolve(), {HOST, "localhost", *public_hosts})
    try:
        server = ThreadingHTTPServer((HOST, port), handler)
    except OSError as error:
        raise UsageError(
            f"Reports cannot be served on port {port}: {error.strerror or error}.", "Choose another with --port."
        ) from error
    server.daemon_threads = True
    with server:
        yield server


class _Handler(BaseHTTPRequestHandler):
    """Answers GET and HEAD for the files of reports; everything else there is not."""

    server_version = "gradtrail"
    sys_version = ""

    def __init__(self, folder: Path, hosts: Collection[str], *connection: object) -> None:
        self._folder = folder
        self._hosts = hosts
        super().__init__(*connection)  # type: ignore[arg-type]  # as http.server hands them over

    def do_GET(self) -> None:
        """Send a file."""
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        """Send what would come before a file."""
        self._answer(with_body=False)

    def _answer(self, *, with_body: bool) -> None:
        # A page elsewhere may have its own name point here; its requests carry that name.
        if urlsplit(f"//{self.headers.get('Host', '')}").hostname not in self._hosts:
            self.send_error(HTTPStatus.MISDIRECTED_REQUEST, "This server answers for this machine alone")
            return
        path = self._file()
        if path is None:
            self.send_error(HTTPStatus.NOT_FOUND, "There is no such report")
            return
        with path.open("rb") as stream:
            self.send_response(HTTPStatus.OK)
            self.send_header("Content-Type", _CONTENT_TYPES[path.suffix])
            self.send_header("Content-Length", str(os.fstat(stream.fileno()).st_size))
            self.send_header("Cache-Control", "no-cache")
            self.send_header("Referrer-Policy", "no-referrer")
            self.send_header("X-Content-Type-Options", "nosniff")
            self.end_headers()
            while with_body and (piece := stream.read(_PIECE)):
                self.wfile.write(piece)

    def _file(self) -> Path | None:
        """The file of a request: below the folder, not hidden, of a kind that reports have."""
        asked = unquote(urlsplit(self.path).path)
        if "\0" in asked:
            return None
        parts = [part for part in asked.split("/") if part] or [INDEX_PAGE]
        if any(part.startswith(".") or "\\" in part for part in parts):
            return None
        path = self._folder.joinpath(*parts)
        try:
            inside = path.resolve(strict=True).is_relative_to(self._folder)
        except OSError:
            return None
        return path if inside and path.is_file() and path.suffix in _CONTENT_TYPES else None

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: addresses name audits."""
