"""Index: one pass over the training data writes a projected gradient per example to LanceDB."""

from __future__ import annotations

from dataclasses import dataclass, replace

from gradtrail.attribution.gradients.shards import Shard
from gradtrail.errors import StoreError
from gradtrail.lineage.events.revisions import record_index_revision
from gradtrail.lineage.read import queries
from gradtrail.nouns import Index
from gradtrail.tasks.core.ledger_nouns import recorded_model_version
from gradtrail.tasks.core.workspace import Workspace
from gradtrail.tasks.index.options import IndexOptions
from gradtrail.tasks.index.passes import IndexPass, plan_index


@dataclass(frozen=True)
class IndexOutcome:
    """What an index pass did; `complete` is False after one shard of several.

    `remeasured` says that the ledger had it and its gradients were lost; `warnings`, what of the model or the data has
    no gradient.
    """

    index_id: str
    new: bool
    rows_written: int
    rows_resumed: int
    quarantined: int
    complete: bool = True
    remeasured: bool = False
    warnings: tuple[str, ...] = ()


def list_checkpoints(workspace: Workspace, model_version_id: str, every: bool) -> list[str]:
    """The checkpoints to index: the serving one, or all in order of steps."""
    with workspace.ledger().read() as connection:
        ids = recorded_model_version(connection, model_version_id).checkpoint_ids
    return list(ids if every else ids[-1:])


def build_index(workspace: Workspace, model_version_id: str, checkpoint_id: str, options: IndexOptions) -> IndexOutcome:
    """Measure every training example that the index does not hold yet, check that none is missing, pin and record it.

    A killed pass resumes where it stopped: rows are keyed by example id and content.

    Raises:
        ModelError: if the model's losses are random or coupled, or nothing of it can be measured.
        DataError: if the training data is not what the dataset version recorded.
        UsageError: if a budget is too small for the model, or the shard does not exist.
        WorkerLostError: if one of several workers was killed.
        StoreError: if the gradients are there, and are not those that the ledger recorded.
    """
    shard = Shard.of_text(options.shard)
    planned = plan_index(workspace, model_version_id, checkpoint_id, options)
    name = planned.index_id
    with workspace.ledger().read() as connection:
        recorded = queries.index(connection, name)
    if recorded is not None and _is_there(workspace, recorded):
        return IndexOutcome(name, new=False, rows_written=0, rows_resumed=0, quarantined=0)
    one_pass = IndexPass(planned)
    measured = one_pass.measure()
    done = IndexOutcome(name, True, measured.written, measured.resumed, len(measured.quarantined), complete=False)
    if shard.count > 1:
        return done
    sealed = one_pass.seal(measured.quarantined)
    if recorded is None:
        workspace.ledger().record_index(sealed)
    else:
        record_index_revision(workspace.ledger(), sealed, "its gradients were lost")
    return replace(done, complete=True, remeasured=recorded is not None, warnings=one_pass.warnings())


def _is_there(workspace: Workspace, recorded: Index) -> bool:
    """Whether the gradients of a recorded index lie in the store; a table without its seal is still being measured."""
    table = workspace.gradients().existing(recorded.index_id)
    seal = None if table is None else table.seal_record()
    if table is None or seal is None:
        return False
    if (seal.version, seal.rows_sha256) != (recorded.table_version, recorded.rows_sha256):
        raise StoreError(
            f"The gradients at {table.uri} are not those that the ledger recorded of index {recorded.index_id}.",
            "Restore them from a backup; or delete them there and run the same command again: it measures them anew.",
        )
    return True


def publish_snapshot(workspace: Workspace) -> str:
    """Publish the ledger for ad hoc readers; returns the snapshot's path."""
    return str(workspace.ledger().publish_snapshot())
