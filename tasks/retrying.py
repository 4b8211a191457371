"""Which tasks are tried again: those that talk to something that can be away for a moment."""

from __future__ import annotations

from typing import Any

from mlflow.exceptions import MlflowException
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.tasks import Task, exponential_backoff
from requests import RequestException
from sqlalchemy.exc import InterfaceError, OperationalError

from gradtrail.errors import GradtrailError

_SERVER_FAULT = 500
RETRIES = 5


def is_transient(_task: Task[..., Any], _run: TaskRun, state: State[Any]) -> bool:
    """Whether trying again can help: a server or database that is away, not a request that is wrong."""
    fault = state.result(raise_on_failure=False)
    while isinstance(fault, BaseException):
        if isinstance(fault, MlflowException):
            return int(fault.get_http_status_code()) >= _SERVER_FAULT  # type: ignore[no-untyped-call]  # mlflow's
        if isinstance(fault, ConnectionError | TimeoutError | RequestException | OperationalError | InterfaceError):
            return True
        # A refusal in our own words may have a server's absence as its cause.
        fault = fault.__cause__ if isinstance(fault, GradtrailError) else None
    return False


WITH_RETRIES: dict[str, Any] = {
    "cache_policy": NO_CACHE,
    "retries": RETRIES,
    "retry_delay_seconds": exponential_backoff(backoff_factor=2),
    "retry_jitter_factor": 0.5,
    "retry_condition_fn": is_transient,
}
"""Options of a task that talks to MLflow, a database or a catalogue: about a minute of patience."""
