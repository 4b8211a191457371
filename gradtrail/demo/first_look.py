"""What a second run of the demo asks first: is there anything to do, before a server and flows are started for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gradtrail.errors import NotFoundError

if TYPE_CHECKING:
    from gradtrail.tasks.core.workspace import Workspace


def nothing_new(workspace: Workspace, reference: str) -> bool:
    """Whether the model is taken in, indexed and calibrated, and every output of the sources audited.

    The sources are read and what is new is recorded, as an audit does it. False sends the demo through all its flows,
    which look again, and say what is wrong where something is.
    """
    from gradtrail.lineage.read import queries
    from gradtrail.lineage.read.measuring_adapters import own_fidelities, own_indexes
    from gradtrail.tasks.collecting import collect_source, look_for_work

    if workspace.openlineage or workspace.payload_retention_days:
        return False
    try:
        version = workspace.registry().resolve(reference)
        with workspace.ledger().read() as connection:
            recorded = queries.model_version(connection, version.model_version_id)
            if recorded is None or not own_indexes(connection, recorded):
                return False
            if not own_fidelities(connection, recorded):
                return False
    except NotFoundError:
        return False
    for source in workspace.output_sources:
        collect_source.fn(workspace, source)
    left = look_for_work.fn(workspace, version, "emitted", False)
    return not (left.model_version_ids or left.alerts_due or left.unpublished)
