"""What the sources of outputs hold for an audit: recorded and pending, waiting, refused, by source."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from gradtrail.lineage.events.source_watermarks import watermarks
from gradtrail.lineage.read.deliveries import pending_by_source
from gradtrail.nouns import Watermark
from gradtrail.storage.sources.spool import open_spool
from gradtrail.tasks.core.workspace import Workspace


@dataclass(frozen=True)
class ListedSource:
    """One source of outputs.

    Attributes:
        name: its name.
        kind: inbox, sql or traces.
        location: where it is, without a password; experiments for traces; empty for one no longer in the settings.
        reached: its watermark.
        seen: different records read since its beginning.
        sampled_out: of these, those that its sampling did not choose.
        refused: of these, those that could not be read.
        pending: recorded outputs that no audit has covered yet, whatever its target.
        waiting: taken records that wait to be recorded, by model version.
    """

    name: str
    kind: str
    location: str
    reached: datetime | None
    seen: int
    sampled_out: int
    refused: int
    pending: int
    waiting: dict[str, int]


def list_sources(workspace: Workspace) -> list[ListedSource]:
    """Every source of the settings, and those that outputs came from once; reads the ledger and changes nothing.

    Raises:
        NotFoundError: nothing was recorded yet.
    """
    with workspace.ledger().read() as connection:
        recorded = {each.source: each for each in watermarks(connection)}
        pending = pending_by_source(connection)
    held: dict[str, dict[str, int]] = {}
    if workspace.spool.is_file():
        with open_spool(workspace.spool) as spool:
            for source, model_version_id, count in spool.waiting():
                held.setdefault(source, {})[model_version_id] = count
    locations = {source.name: (source.kind, source.shown_location()) for source in workspace.output_sources}
    listed = []
    for name in dict.fromkeys([*locations, *recorded, *pending]):
        known = recorded.get(name)
        kind, location = locations.get(name, (known.kind if known else "", ""))
        mark = known or Watermark(name, kind, None)
        counts = (mark.seen, mark.sampled_out, mark.refused, pending.get(name, 0))
        listed.append(ListedSource(name, kind, location, mark.reached, *counts, waiting=held.get(name, {})))
    return listed
