"""How far each source of outputs was read: the newest row of a source counts."""

from __future__ import annotations

from dataclasses import replace

import duckdb

from gradtrail.lineage.chain.appending import append
from gradtrail.lineage.chain.rows import rows_from
from gradtrail.lineage.connections import first_row
from gradtrail.lineage.ledger.writing import Ledger
from gradtrail.lineage.schema.nouns import noun_of, select
from gradtrail.nouns import Watermark


def record_watermark(ledger: Ledger, watermark: Watermark) -> bool:
    """Record how far a source was read, if that differs from what is recorded; a watermark never goes back.

    Raises:
        DataError: a count is missing or a time has no zone.
    """
    with ledger.transaction() as connection:
        before = newest_watermark(connection, watermark.source)
        if before is not None and before.reached is not None:
            reached = before.reached if watermark.reached is None else max(before.reached, watermark.reached)
            watermark = replace(watermark, reached=reached)
        if watermark == before:
            return False
        found = first_row(
            connection, "SELECT coalesce(max(revision), 0) FROM watermark WHERE source = ?", [watermark.source]
        )
        revision = int(found[0]) + 1 if found else 1
        append(connection, "watermark", watermark.source, [rows_from("watermark", [watermark], revision=revision)])
        return True


def newest_watermark(connection: duckdb.DuckDBPyConnection, source: str) -> Watermark | None:
    """The watermark that holds for a source."""
    row = first_row(connection, select(Watermark, "FROM source_watermark WHERE source = ?"), [source])
    return noun_of(Watermark, row) if row else None


def watermarks_before(connection: duckdb.DuckDBPyConnection, event_sequence: int) -> list[Watermark]:
    """The watermark that held for every source before an event, by name."""
    newest = """
        FROM watermark WHERE event_sequence < ?
        QUALIFY row_number() OVER (PARTITION BY source ORDER BY revision DESC) = 1 ORDER BY source"""
    found = connection.execute(select(Watermark, newest), [event_sequence]).fetchall()
    return [noun_of(Watermark, row) for row in found]


def watermarks(connection: duckdb.DuckDBPyConnection) -> list[Watermark]:
    """The watermark of every source that was ever read, by name."""
    found = connection.execute(select(Watermark, "FROM source_watermark ORDER BY source")).fetchall()
    return [noun_of(Watermark, row) for row in found]
