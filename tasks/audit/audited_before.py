"""What was audited before, for an audit that is made again."""

from __future__ import annotations

from gradtrail.lineage.read import listings, queries
from gradtrail.nouns import Target
from gradtrail.tasks.core.workspace import Workspace


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
