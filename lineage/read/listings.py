"""Everything of one kind that the ledger holds: what `verify` walks through, and what collecting outputs looks up."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime

import duckdb

from gradtrail.lineage.read import queries
from gradtrail.lineage.read.answers import RecordedReport
from gradtrail.lineage.read.places import located
from gradtrail.lineage.schema.nouns import noun_of, select
from gradtrail.nouns import Checkpoint, DatasetVersion, Index, Target, Weighting

Connection = duckdb.DuckDBPyConnection


def dataset_versions(connection: Connection) -> list[DatasetVersion]:
    """All dataset versions, in the order they were recorded."""
    query = select(DatasetVersion, "FROM dataset_version ORDER BY event_sequence")
    return located(connection, [noun_of(DatasetVersion, row) for row in connection.execute(query).fetchall()])


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


def weightings(connection: Connection) -> list[Weighting]:
    """All weightings, in the order they were recorded."""
    found = connection.execute("SELECT weighting_id FROM weighting ORDER BY event_sequence").fetchall()
    return [weighting for row in found if (weighting := queries.weighting(connection, row[0]))]


def payloads_by_output(connection: Connection) -> dict[str, str]:
    """Payload digest by output id, for every output."""
    return dict(connection.execute("SELECT output_id, payload_sha256 FROM output ORDER BY output_id").fetchall())


def outputs_recorded_before(connection: Connection, moment: datetime) -> list[str]:
    """Ids of the outputs that the ledger recorded before a moment."""
    query = """
        SELECT output_id FROM output JOIN event ON event.sequence = output.event_sequence
        WHERE event.recorded_at < ? ORDER BY output_id"""
    return [row[0] for row in connection.execute(query, [moment]).fetchall()]


def all_attributes(
    connection: Connection, dataset_version_id: str, example_ids: Collection[str]
) -> dict[str, dict[str, str]]:
    """The attributes that are left of those examples that the dataset version has, personal ones too, by id."""
    named = [dataset_version_id, sorted(example_ids)]
    query = """
        SELECT example_id, attributes FROM example
        WHERE dataset_version_id = ? AND example_id IN (SELECT unnest(?))"""
    found = {example_id: dict(attributes) for example_id, attributes in connection.execute(query, named).fetchall()}
    query = """
        SELECT example_id, name, value FROM personal_attribute
        WHERE dataset_version_id = ? AND example_id IN (SELECT unnest(?))"""
    for example_id, name, value in connection.execute(query, named).fetchall():
        found[example_id][name] = value
    return found


def reported_audits_naming(
    connection: Connection, example_ids: Collection[str], output_ids: Collection[str]
) -> list[str]:
    """Audits with a report that names one of the examples or outputs, in the order they were recorded."""
    query = """
        SELECT audit_id FROM report
        SEMI JOIN (
            SELECT audit_id FROM attribution WHERE example_id IN (SELECT unnest($1))
            UNION SELECT audit_id FROM example_influence WHERE example_id IN (SELECT unnest($1))
            UNION SELECT audit_id FROM audit_output WHERE output_id IN (SELECT unnest($2))
        ) AS naming USING (audit_id)
        ORDER BY event_sequence"""
    return [row[0] for row in connection.execute(query, [sorted(example_ids), sorted(output_ids)]).fetchall()]


def reports(connection: Connection) -> list[RecordedReport]:
    """All reports, in the order they were recorded."""
    found = connection.execute("SELECT audit_id FROM report ORDER BY event_sequence").fetchall()
    return [report for row in found if (report := queries.report_of(connection, row[0]))]


def audited_outputs(connection: Connection, model_version_id: str, target: Target) -> list[str]:
    """Ids of the outputs that audits of a model version examined for that target, by id."""
    query = """
        SELECT DISTINCT output_id FROM audit_output JOIN audit USING (audit_id)
        WHERE audit.model_version_id = ? AND target = ? ORDER BY output_id"""
    return [row[0] for row in connection.execute(query, [model_version_id, target]).fetchall()]
