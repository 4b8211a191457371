"""Servers of a team's installation on loopback, each for the time of a block: Postgres, MLflow, Prefect."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from gradtrail.errors import GradtrailError

START_SECONDS = 120
_POSTGRES_HOMES = (*sorted(Path("/usr/lib/postgresql").glob("*/bin")), Path("/usr/local/bin"))
_USER = "gradtrail"


@dataclass(frozen=True)
class Postgres:
    """A Postgres with a folder of its own, that can go away and come back at the same address.

    Attributes:
        programs: folder of `initdb`, `postgres` and `pg_ctl`.
        folder: its data and log; the folder's owner runs it, because it refuses to run as root.
        port: of loopback.
        as_user: what a command begins with to run as that owner.
    """

    programs: Path
    folder: Path
    port: int
    as_user: Sequence[str]

    def address(self, driver: str, database: str) -> str:
        """SQLAlchemy URL of a database, for the driver `psycopg` or `asyncpg`."""
        return f"postgresql+{driver}://{_USER}@127.0.0.1:{self.port}/{database}"

    def start(self) -> None:
        """Come (back); returns when it answers."""
        options = f"-p {self.port} -k {self.folder} -c listen_addresses=127.0.0.1 -c fsync=off -c max_connections=200"
        self._run(
            "pg_ctl", "-D", str(self.folder / "data"), "-w", "-l", str(self.folder / "log"), "-o", options, "start"
        )

    def stop(self) -> None:
        """Go away at once, as when its host fails: connections break, what was committed stays."""
        self._run("pg_ctl", "-D", str(self.folder / "data"), "-w", "-m", "immediate", "stop")

    def create(self, database: str) -> None:
        """Add an empty database."""
        self._run("createdb", "-h", "127.0.0.1", "-p", str(self.port), "-U", _USER, database)

    def initialise(self) -> None:
        """Make the files of an empty cluster."""
        self._run("initdb", "-D", str(self.folder / "data"), "-U", _USER, "-A", "trust", "-E", "UTF8", "--no-sync")

    def _run(self, program: str, *arguments: str) -> None:
        command = [*self.as_user, str(self.programs / program), *arguments]
        # What pg_ctl starts keeps its output open: it must not be a pipe of ours.
        with (self.folder / "commands.log").open("ab") as log:
            done = subprocess.run(command, stdout=log, stderr=log, check=False, cwd=self.folder)  # noqa: S603 (ours)
        if done.returncode:
            said = (self.folder / "commands.log").read_text(errors="replace").strip().splitlines()[-1:]
            raise GradtrailError(f"{program} of Postgres failed: {' '.join(said)}", f"Look into {self.folder}.")


@contextmanager
def postgres(databases: Sequence[str]) -> Iterator[Postgres]:
    """A Postgres with these databases, stopped and removed afterwards.

    Raises:
        GradtrailError: it is not installed, or does not start.
    """
    programs = next((found for found in _POSTGRES_HOMES if (found / "initdb").is_file()), None)
    if programs is None:
        raise GradtrailError(
            "Postgres is not installed here.", "Install it (Debian: postgresql), or leave its row out."
        )
    with tempfile.TemporaryDirectory(prefix="gradtrail-postgres-") as name:
        as_user: list[str] = []
        if os.geteuid() == 0:
            owner = pwd.getpwnam("nobody")
            shutil.chown(name, owner.pw_uid, owner.pw_gid)
            as_user = ["runuser", "-u", "nobody", "--"]
        server = Postgres(programs, Path(name), free_port(), as_user)
        server.initialise()
        server.start()
        try:
            for database in databases:
                server.create(database)
            yield server
        finally:
            server.stop()


@contextmanager
def mlflow_server(folder: Path, database: str, port: int) -> Iterator[None]:
    """An MLflow server over a database, with its artifacts and log in the folder.

    Raises:
        GradtrailError: it does not start.
    """
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--backend-store-uri", database, "--artifacts-destination", str(folder / "artifacts"), "--workers", "1"]
    variables = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with _process(command, folder / "server.log", variables, f"http://127.0.0.1:{port}/health"):
        yield


@contextmanager
def prefect_on(folder: Path, database: str) -> Iterator[str]:
    """The address of the API of a Prefect server over a database, with its log in the folder.

    Raises:
        GradtrailError: it does not start.
    """
    port = free_port()
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    variables = {"PREFECT_API_DATABASE_CONNECTION_URL": database, "PREFECT_HOME": str(folder / "prefect")}
    address = f"http://127.0.0.1:{port}/api"
    with _process(command, folder / "prefect.log", variables, f"{address}/health"):
        yield address


@contextmanager
def _process(command: list[str], log: Path, variables: dict[str, str], health: str) -> Iterator[None]:
    with log.open("ab") as stream:
        process = subprocess.Popen(  # noqa: S603 (ours)
            command, stdout=stream, stderr=stream, env={**os.environ, **variables}, start_new_session=True
        )
    try:
        wait_for(lambda: answers(health) or process.poll() is not None)
        if process.poll() is not None:
            raise GradtrailError(f"{command[2]} ended with exit code {process.returncode}.", f"Look into {log}.")
        yield
    finally:
        # Its workers are in its session: they must not outlive it.
        if process.poll() is None:
            os.killpg(process.pid, 9)
        process.wait()


def wait_for(condition: Callable[[], bool], seconds: float = START_SECONDS) -> None:
    """Return when the condition holds.

    Raises:
        GradtrailError: it does not within that time.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise GradtrailError(f"A server did not answer within {seconds:.0f} s.", "Look into its log.")
        time.sleep(0.2)


def answers(address: str) -> bool:
    """Whether somebody answers well at the address."""
    try:
        return httpx.get(address, timeout=2).is_success
    except httpx.TransportError:
        return False


def free_port() -> int:
    """A port of loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
