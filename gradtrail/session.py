"""One command's session: Prefect embedded in the home folder; libraries quiet and offline, unless told otherwise."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_QUIET = {
    "DO_NOT_TRACK": "1",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "PREFECT_LOGGING_LEVEL": "CRITICAL",  # a failed flow raises here; its traceback need not be logged as well
    "PREFECT_LOGGING_TO_API_ENABLED": "false",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
    "PREFECT_SERVER_LOGGING_LEVEL": "ERROR",
}


def quiet_libraries() -> None:
    """Set what keeps libraries quiet and offline; must run before their first import. What is set already stays."""
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)


@contextmanager
def flow_session(home: Path) -> Iterator[None]:
    """Run flows on the Prefect server of `PREFECT_API_URL`, or on an embedded one under the home folder."""
    quiet_libraries()
    if not os.environ.get("PREFECT_API_URL"):
        embedded = home.resolve() / "prefect"
        embedded.mkdir(parents=True, exist_ok=True)
        os.environ.setdefault("PREFECT_HOME", str(embedded))
    from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings

    # The heartbeat of a flow makes its end wait for a second.
    with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
        yield
