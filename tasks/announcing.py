"""The task that announces new ledger entries to an OpenLineage catalogue."""

from __future__ import annotations

from prefect import task
from prefect.cache_policies import NO_CACHE

from gradtrail.tasks.alert import announcements
from gradtrail.tasks.core.workspace import Workspace
from gradtrail.tasks.run_log import warn


@task(cache_policy=NO_CACHE)
def announce(workspace: Workspace) -> int:
    """Send what the catalogue does not have yet; returns the number of events."""
    return announcements.announce(workspace, warn)
