"""Announcing: what the ledger recorded goes to an OpenLineage catalogue at the end of a flow."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from gradtrail.errors import GradtrailError
from gradtrail.secret_addresses import FROM_ENVIRONMENT, resolved, without_secrets
from gradtrail.storage.files.atomic import write_atomically
from gradtrail.tasks.core.workspace import Workspace

CURSOR = "openlineage.json"
API_KEY = "GRADTRAIL_OPENLINEAGE_API_KEY"


def announce(workspace: Workspace, warn: Callable[[str], None]) -> int:
    """Send what the catalogue does not have yet, from the published snapshot; returns the number of events.

    A catalogue that is away does not stop an audit: `warn` is told, and the next flow sends what this one could not.
    """
    if not workspace.openlineage:
        return 0
    from gradtrail.lineage.exports.openlineage_events import run_events
    from gradtrail.lineage.exports.openlineage_sending import append_to_file, send
    from gradtrail.lineage.read import queries

    address = resolved(workspace.openlineage)
    if address is None:
        warn(f"Lineage was not announced: {workspace.openlineage.removeprefix(FROM_ENVIRONMENT)} is not set.")
        return 0
    shown = without_secrets(address)
    cursor = workspace.root / CURSOR
    sent = _sent(cursor)
    with closing(workspace.ledger().read_snapshot()) as connection:
        newest = queries.events(connection, 1)[0].sequence
        events = list(run_events(connection, after=sent.get(shown, 0)))
    try:
        if address.startswith(("http://", "https://")):
            send(events, address, api_key=os.environ.get(API_KEY, ""))
        else:
            append_to_file(events, Path(address))
    except GradtrailError as fault:
        warn(f"Lineage was not announced, the next flow tries again. {fault}")
        return 0
    write_atomically(cursor, json.dumps(sent | {shown: newest}).encode())
    return len(events)


def _sent(cursor: Path) -> dict[str, int]:
    """Sequence of the last entry that each catalogue has."""
    return dict(json.loads(cursor.read_text("utf-8"))) if cursor.is_file() else {}
