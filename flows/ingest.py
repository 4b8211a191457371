"""The flow `ingest`: a registered model version becomes part of the ledger."""

from __future__ import annotations

from dataclasses import dataclass

from prefect import flow

from gradtrail.tasks import ingesting
from gradtrail.tasks.announcing import announce
from gradtrail.tasks.core.workspace import Workspace
from gradtrail.tasks.indexing import publish_snapshot
from gradtrail.tasks.ingest.taking_in import already_ingested


@dataclass(frozen=True)
class IngestOutcome:
    """What ingest did: `new` is False when the ledger had the model version already."""

    model_version_id: str
    new: bool
    checkpoint_ids: tuple[str, ...] = ()
    dataset_version_id: str = ""
    example_count: int = 0


@flow(name="gradtrail-ingest")
def ingest(
    workspace: Workspace, reference: str, adapter: str = "", allow_code_execution: bool = False
) -> IngestOutcome:
    """Take in `NAME@alias`, `NAME/3` or `NAME`: weights, manifest and adapter are checked, kept by digest and recorded.

    Args:
        workspace: where everything lives.
        reference: the model version; an alias is resolved once and pinned by number.
        adapter: `module:Class` for versions that were registered by other means; naming it here allows it to run.
        allow_code_execution: read pickled or exported models too, which can execute code that they carry.
    """
    version = ingesting.resolve_version(workspace, reference)
    if already_ingested(workspace, version):
        return IngestOutcome(version.model_version_id, new=False)
    chosen = ingesting.choose_adapter(workspace, version, adapter)
    files = ingesting.fetch_files(workspace, version)
    checkpoints = ingesting.store_checkpoints(workspace, version, files, chosen, allow_code_execution)
    dataset = ingesting.store_manifest(workspace, version, files, chosen)
    model_version_id = ingesting.record_model_version(workspace, version, checkpoints, dataset, chosen)
    ingesting.tag_version(workspace, version, checkpoints, dataset, chosen)
    publish_snapshot(workspace)
    announce(workspace)
    return IngestOutcome(
        model_version_id,
        new=True,
        checkpoint_ids=tuple(checkpoint.checkpoint_id for checkpoint in checkpoints),
        dataset_version_id=dataset.dataset_version_id,
        example_count=dataset.example_count,
    )
