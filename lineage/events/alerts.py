"""Alerts in the ledger: due with an audit, delivered once an outlet has taken them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import duckdb

from gradtrail.digests import sha256_json
from gradtrail.lineage.chain.appending import append, keep_new
from gradtrail.lineage.chain.references import require
from gradtrail.lineage.chain.rows import rows_from
from gradtrail.lineage.ledger.writing import Ledger
from gradtrail.lineage.schema.nouns import noun_of, select

DUE, DELIVERED = "due", "delivered"


@dataclass(frozen=True)
class Alert:
    """What an outlet has to be told: the findings of one audit."""

    audit_id: str
    outlet: str

    @property
    def idempotency_key(self) -> str:
        """The same at every attempt, so that a receiver can tell a repeat."""
        return sha256_json({"audit_id": self.audit_id, "outlet": self.outlet})


def record_alerts(ledger: Ledger, alerts: Sequence[Alert], state: str) -> bool:
    """Record that alerts are due, or were delivered; those recorded before stay. False when none is new."""
    rows = rows_from("alert", alerts, state=state)
    with ledger.transaction() as connection:
        require(connection, "audit", "audit_id", [each.audit_id for each in alerts])
        new = keep_new(connection, rows)
        if new.count:
            append(connection, "alert", state, [new])
        return bool(new.count)


def undelivered_alerts(connection: duckdb.DuckDBPyConnection) -> list[Alert]:
    """Alerts that are due and not delivered, the oldest first; those whose audit has its report, which they link to."""
    due = """
        FROM alert SEMI JOIN report USING (audit_id) WHERE state = 'due'
            AND NOT EXISTS (SELECT 1 FROM alert AS taken
                WHERE taken.audit_id = alert.audit_id AND taken.outlet = alert.outlet AND taken.state = 'delivered')
        ORDER BY event_sequence, audit_id, outlet"""
    return [noun_of(Alert, row) for row in connection.execute(select(Alert, due)).fetchall()]
