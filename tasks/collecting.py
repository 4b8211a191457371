"""Collecting outputs: what lies in the inbox becomes payloads and rows of the ledger, each once."""

from __future__ import annotations

from dataclasses import dataclass

from prefect import task
from prefect.cache_policies import NO_CACHE

from gradtrail.lineage import queries
from gradtrail.nouns import Target
from gradtrail.storage.outputs import collect
from gradtrail.tasks.workspace import Workspace


@dataclass(frozen=True)
class Collection:
    """What a look into the inbox brought: new output ids, and what was refused with its cause."""

    new_output_ids: tuple[str, ...]
    refused: tuple[tuple[str, str], ...]


@task(cache_policy=NO_CACHE)
def collect_outputs(workspace: Workspace) -> Collection:
    """Read every file of the inbox; record what is new, quarantine what cannot be used, and change nothing else."""
    workspace.inbox.mkdir(parents=True, exist_ok=True)
    collected = collect(workspace.inbox, workspace.payloads())
    ledger = workspace.ledger()
    new = ledger.record_outputs(collected.outputs)
    for refused in collected.refused:
        ledger.record_quarantine(refused.source, refused.record_id, refused.cause)
    return Collection(tuple(new), tuple((r.record_id, r.cause) for r in collected.refused))


@task(cache_policy=NO_CACHE)
def pending_output_ids(workspace: Workspace, model_version_id: str, target: Target) -> list[str]:
    """Outputs of a model version that no audit has covered yet, oldest first."""
    with workspace.ledger().read() as connection:
        return [output.output_id for output in queries.pending_outputs(connection, model_version_id, target=target)]
