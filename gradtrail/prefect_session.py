"""Flows from the command line: Prefect embedded in the home folder, quiet and offline, unless told otherwise."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_QUIET = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_LOGGING_LEVEL": "WARNING",
    "PREFECT_LOGGING_TO_API_ENABLED": "false",
    "PREFECT_SERVER_LOGGING_LEVEL": "ERROR",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
}


def configure_prefect(home: Path) -> None:
    """Set Prefect's variables, before its first import. A server named by PREFECT_API_URL is used as it is."""
    quiet = dict(_QUIET)
    if not os.environ.get("PREFECT_API_URL"):
        quiet["PREFECT_HOME"] = str(home.resolve() / "prefect")
    for name, value in quiet.items():
        os.environ.setdefault(name, value)


@contextmanager
def prefect_session(home: Path) -> Iterator[None]:
    """Run the flows of the block without a second's wait for a heartbeat at the end of each."""
    configure_prefect(home)
    from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings

    with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
        yield
