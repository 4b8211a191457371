"""Serving the folder of reports to the browsers of this machine: read-only, nothing but reports, no listing."""

from __future__ import annotations

import os
import socket
from collections.abc import Collection, Iterator
from contextlib import closing, contextmanager
from pathlib import Path, PurePosixPath

import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import Response
from starlette.routing import Mount
from starlette.staticfiles import PathLike, StaticFiles
from starlette.types import Scope

from gradtrail.addresses import INDEX_PAGE
from gradtrail.errors import UsageError

HOST = "127.0.0.1"
_CONTENT_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".json": "application/json",
    ".parquet": "application/vnd.apache.parquet",
}
_HEADERS = {"Cache-Control": "no-cache", "Referrer-Policy": "no-referrer", "X-Content-Type-Options": "nosniff"}


class ReportServer:
    """A server whose port is bound. `serve_forever` answers until `shutdown`, from another thread, or Ctrl-C."""

    def __init__(self, app: Starlette, listening: socket.socket) -> None:
        self._socket = listening
        # Says nothing: addresses name audits.
        config = uvicorn.Config(app, log_config=None, access_log=False, server_header=False, lifespan="off")
        self._server = uvicorn.Server(config)
        self.server_port: int = listening.getsockname()[1]

    def serve_forever(self) -> None:
        """Answer requests."""
        self._server.run(sockets=[self._socket])

    def shutdown(self) -> None:
        """End `serve_forever` soon."""
        self._server.should_exit = True


@contextmanager
def report_server(folder: Path, port: int, public_hosts: Collection[str] = ()) -> Iterator[ReportServer]:
    """A server on the loopback address, bound and not yet answering: call `serve_forever` on it.

    Args:
        folder: the reports; links that lead out of it are not followed.
        port: 0 takes any that is free; see `server_port`.
        public_hosts: names by which a proxy asks for it, besides those of this machine.

    Raises:
        UsageError: the port is taken, or not allowed.
    """
    # A page elsewhere may have its own name point here; its requests carry that name.
    hosts = Middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost", *public_hosts], www_redirect=False)
    app = Starlette(routes=[Mount("/", _Reports(directory=folder))], middleware=[hosts])
    with closing(socket.socket()) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((HOST, port))
        except OSError as error:
            raise UsageError(
                f"Reports cannot be served on port {port}: {error.strerror or error}.", "Choose another with --port."
            ) from error
        listening.listen()
        yield ReportServer(app, listening)


class _Reports(StaticFiles):
    """The files of reports; everything else there is not."""

    def lookup_path(self, path: str) -> tuple[str, os.stat_result | None]:
        """The file of a request: not hidden, and of a kind that reports have."""
        asked = PurePosixPath(INDEX_PAGE if path == "." else path)
        if asked.suffix not in _CONTENT_TYPES or any(part.startswith(".") for part in asked.parts):
            return "", None
        return super().lookup_path(str(asked))

    def file_response(
        self, full_path: PathLike, stat_result: os.stat_result, scope: Scope, status_code: int = 200
    ) -> Response:
        """The file as what it is, to be asked for again each time."""
        response = super().file_response(full_path, stat_result, scope, status_code)
        response.headers.update({"Content-Type": _CONTENT_TYPES[PurePosixPath(full_path).suffix], **_HEADERS})
        return response
