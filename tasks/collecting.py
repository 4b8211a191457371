"""Collecting outputs: what lies in the inbox becomes payloads and rows of the ledger, each once."""

from __future__ import annotations

from dataclasses import dataclass

from prefect import task
from prefect.cache_policies import NO_CACHE

from gradtrail.lineage import listings, queries
from gradtrail.nouns import Target
from gradtrail.storage.outputs import Refused, collect
from gradtrail.tasks.auditing import MEASURING
from gradtrail.tasks.workspace import Workspace


@dataclass(frozen=True)
class Collection:
    """What a look into the inbox brought.

    `refused` pairs records that were refused for the first time with the cause. `waiting` counts outputs of model
    versions that were never ingested; they stay in the inbox until those are.
    """

    new_output_ids: tuple[str, ...]
    refused: tuple[tuple[str, str], ...]
    waiting: int


@task(cache_policy=NO_CACHE)
def collect_outputs(workspace: Workspace) -> Collection:
    """Read every file of the inbox; record what is new, quarantine what cannot be used, and change nothing else."""
    workspace.inbox.mkdir(parents=True, exist_ok=True)
    ledger = workspace.ledger()
    with ledger.read() as connection:
        known = listings.payloads_by_output(connection)
        ingested = {version.model_version_id for version in queries.model_versions(connection)}
    collected = collect(workspace.inbox, workspace.payloads(), known=known)
    refused = list(collected.refused)
    accepted, waiting = [], 0
    for output in collected.outputs:
        recorded = known.get(output.output_id, output.payload_sha256)
        if recorded != output.payload_sha256:
            cause = f"The output {output.output_id} was recorded before with another content. Give it an id of its own."
            refused.append(Refused(output.source, output.record_id, cause))
        elif output.model_version_id in ingested:
            accepted.append(output)
        else:
            waiting += 1
    newly_refused = [r for r in refused if ledger.record_quarantine(r.source, r.record_id, r.cause)]
    return Collection(
        tuple(ledger.record_outputs(accepted)), tuple((r.record_id, r.cause) for r in newly_refused), waiting
    )


@task(cache_policy=NO_CACHE)
def pending_output_ids(workspace: Workspace, model_version_id: str, target: Target) -> list[str]:
    """Outputs of a model version that no audit has covered yet, oldest first; not those that could not be measured."""
    with workspace.ledger().read() as connection:
        unmeasurable = {refused.record_id for refused in queries.quarantined(connection, MEASURING)}
        pending = queries.pending_outputs(connection, model_version_id, target=target)
    return [output.output_id for output in pending if output.output_id not in unmeasurable]


@task(cache_policy=NO_CACHE)
def audited_output_ids(
    workspace: Workspace, model_version_id: str, target: Target, audit_id: str = ""
) -> tuple[list[str], int]:
    """Outputs that audits of a model version examined, or that one audit did, and how many more have no payload.

    Raises:
        NotFoundError: an audit was named that the ledger does not have.
    """
    payloads = workspace.payloads()
    with workspace.ledger().read() as connection:
        if audit_id:
            examined = [output_id for output_id, _ in queries.audit_details(connection, audit_id).audit.outputs]
        else:
            examined = listings.audited_outputs(connection, model_version_id, target)
        outputs = queries.outputs(connection, examined)
    kept = [output.output_id for output in outputs if output.payload_sha256 in payloads]
    return kept, len(outputs) - len(kept)
