"""Everything of one kind that the ledger holds: what `verify` walks through, and what collecting outputs looks up."""

from __future__ import annotations

import json

import duckdb

from gradtrail.errors import NotFoundError
from gradtrail.lineage import queries
from gradtrail.lineage.records import RecordedReport
from gradtrail.nouns import Checkpoint, DatasetVersion, Event, Index

Connection = duckdb.DuckDBPyConnection


def dataset_versions(connection: Connection) -> list[DatasetVersion]:
    """All dataset versions, in the order they were recorded."""
    query = """
        SELECT dataset_version_id, name, example_count, manifest_uri FROM dataset_version ORDER BY event_sequence"""
    return [DatasetVersion(*row) for row in connection.execute(query).fetchall()]


def checkpoints(connection: Connection) -> list[Checkpoint]:
    """The checkpoints of all model versions, each once a place."""
    found = {
        (checkpoint.checkpoint_id, checkpoint.weights_uri): checkpoint
        for version in queries.model_versions(connection)
        for checkpoint in queries.checkpoints_of(connection, version.model_version_id)
    }
    return list(found.values())


def indexes(connection: Connection) -> list[Index]:
    """All gradient indexes, in the order they were recorded."""
    found = connection.execute("SELECT index_id FROM gradient_index ORDER BY event_sequence").fetchall()
    return [index for row in found if (index := queries.index(connection, row[0]))]


def payloads_by_output(connection: Connection) -> dict[str, str]:
    """Payload digest by output id, for every output."""
    return dict(connection.execute("SELECT output_id, payload_sha256 FROM output ORDER BY output_id").fetchall())


def reports(connection: Connection) -> list[RecordedReport]:
    """All reports, in the order they were recorded."""
    found = connection.execute("SELECT audit_id FROM report ORDER BY event_sequence").fetchall()
    return [report for row in found if (report := queries.report_of(connection, row[0]))]


def audit_event(connection: Connection, audit_id: str) -> Event:
    """The event that recorded an audit.

    Raises:
        NotFoundError: if there is no such audit.
    """
    query = """
        SELECT sequence, recorded_at, kind, event.subject, payload, previous_hash, event_hash
        FROM event JOIN audit ON audit.event_sequence = event.sequence WHERE audit_id = ?"""
    rows = connection.execute(query, [audit_id]).fetchall()
    if not rows:
        raise NotFoundError(f"There is no audit {audit_id} in the ledger.", "Look with: gradtrail sql 'FROM audit'.")
    sequence, recorded_at, kind, subject, payload, previous_hash, event_hash = rows[0]
    return Event(sequence, recorded_at, kind, subject, json.loads(payload), previous_hash, event_hash)
