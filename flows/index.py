"""The flow `index`: one pass over the training data for each checkpoint."""

from __future__ import annotations

from prefect import flow

from gradtrail.tasks.announcing import announce
from gradtrail.tasks.core.workspace import Workspace
from gradtrail.tasks.index.building import IndexOutcome
from gradtrail.tasks.index.options import IndexOptions
from gradtrail.tasks.indexing import build_index, list_checkpoints, publish_snapshot
from gradtrail.tasks.ingesting import resolve_version


@flow(name="gradtrail-index")
def index(
    workspace: Workspace,
    reference: str,
    options: IndexOptions = IndexOptions(),  # noqa: B008 - frozen
    every_checkpoint: bool = False,
) -> list[IndexOutcome]:
    """Build the gradient index of an ingested model version; what is there already is not measured again.

    Args:
        workspace: where everything lives.
        reference: `NAME@alias`, `NAME/3` or `NAME`.
        options: how gradients are projected and stored.
        every_checkpoint: index all checkpoints and not only the serving one.
    """
    version = resolve_version(workspace, reference)
    outcomes = [
        build_index(workspace, version.model_version_id, checkpoint_id, options)
        for checkpoint_id in list_checkpoints(workspace, version.model_version_id, every_checkpoint)
    ]
    if any(outcome.new for outcome in outcomes):
        publish_snapshot(workspace)
        announce(workspace)
    return outcomes
