"""Clocks: events in the order of the chain whose times are not in order."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import duckdb


@dataclass(frozen=True)
class ClockJump:
    """An event that is dated before the one it follows: the clock was set back between them, or a time is not true."""

    sequence: int
    recorded_at: datetime
    previous_at: datetime

    @property
    def seconds(self) -> float:
        """How far it lies before the event that it follows."""
        return (self.previous_at - self.recorded_at).total_seconds()


def clock_jumps(connection: duckdb.DuckDBPyConnection) -> list[ClockJump]:
    """Every event that is dated before the one it follows, in order."""
    query = """
        SELECT sequence, recorded_at, previous_at FROM (
            SELECT sequence, recorded_at, lag(recorded_at) OVER (ORDER BY sequence) AS previous_at FROM event)
        WHERE recorded_at < previous_at ORDER BY sequence"""
    return [ClockJump(*row) for row in connection.execute(query).fetchall()]


def clock_behind_seconds(connection: duckdb.DuckDBPyConnection, now: datetime) -> float:
    """How far `now` lies before the newest time of the ledger; 0 where it does not."""
    [(newest,)] = connection.execute("SELECT max(recorded_at) FROM event").fetchall()
    return max(0.0, (newest - now).total_seconds()) if newest is not None else 0.0
