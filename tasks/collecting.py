"""The tasks that collect outputs: each source with a minute of patience of its own."""

from __future__ import annotations

from prefect import task
from prefect.cache_policies import NO_CACHE

from gradtrail.tasks.collect import collecting
from gradtrail.tasks.collect.collecting import Collection
from gradtrail.tasks.core.workspace import Workspace
from gradtrail.tasks.retrying import WITH_RETRIES

collect_source = task(**WITH_RETRIES)(collecting.collect_source)
look_for_work = task(cache_policy=NO_CACHE)(collecting.look_for_work)
pending_outputs = task(cache_policy=NO_CACHE)(collecting.pending_outputs)


@task(cache_policy=NO_CACHE)
def collect_outputs(workspace: Workspace) -> Collection:
    """Read every source: record what is new, quarantine what cannot be used. A source that fails stops no other."""
    return collecting.collect_outputs(workspace, collect_source)
