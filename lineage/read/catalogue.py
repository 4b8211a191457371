"""Reading nouns back: data, models, indexes, outputs, events."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import duckdb

from gradtrail.lineage.connections import first_row
from gradtrail.lineage.read.answers import AttributeCount, Quarantined, RecordedExample
from gradtrail.lineage.read.places import located
from gradtrail.lineage.schema.nouns import noun_of, select
from gradtrail.nouns import (
    Checkpoint,
    DatasetVersion,
    Event,
    Fidelity,
    Index,
    ModelVersion,
    Output,
    Run,
    Target,
    Weighting,
)

Connection = duckdb.DuckDBPyConnection
_MEMBERS = """(
    SELECT list(checkpoint_id ORDER BY position) FROM model_version_checkpoint AS member
    WHERE member.model_version_id = model_version.model_version_id)"""


def dataset_version(connection: Connection, dataset_version_id: str) -> DatasetVersion | None:
    """The dataset version with that id."""
    query = select(DatasetVersion, "FROM dataset_version WHERE dataset_version_id = ?")
    row = first_row(connection, query, [dataset_version_id])
    return located(connection, [noun_of(DatasetVersion, row)])[0] if row else None


def model_version(connection: Connection, model_version_id: str) -> ModelVersion | None:
    """The model version with that id, for example `digits/3`."""
    query = select(ModelVersion, "FROM model_version WHERE model_version_id = ?", checkpoint_ids=_MEMBERS)
    row = first_row(connection, query, [model_version_id])
    return noun_of(ModelVersion, row) if row else None


def model_versions(connection: Connection) -> list[ModelVersion]:
    """All model versions, by name and number."""
    found = connection.execute("SELECT model_version_id FROM model_version ORDER BY name, version").fetchall()
    return [version for row in found if (version := model_version(connection, row[0]))]


def run(connection: Connection, run_id: str) -> Run | None:
    """The training run with that MLflow id."""
    row = first_row(connection, select(Run, "FROM training_run WHERE run_id = ?"), [run_id])
    return noun_of(Run, row) if row else None


def checkpoint(connection: Connection, checkpoint_id: str) -> Checkpoint | None:
    """The checkpoint with that id, with step and place as it was first recorded."""
    placed = """
        FROM model_version_checkpoint AS member JOIN checkpoint USING (checkpoint_id)
        WHERE checkpoint_id = ? ORDER BY member.event_sequence, member.position LIMIT 1"""
    row = first_row(connection, select(Checkpoint, placed), [checkpoint_id])
    return located(connection, [noun_of(Checkpoint, row)])[0] if row else None


def checkpoints_of(connection: Connection, model_version_id: str) -> list[Checkpoint]:
    """The checkpoints of a model version in order of steps; the last one serves."""
    placed = """
        FROM model_version_checkpoint AS member JOIN checkpoint USING (checkpoint_id)
        WHERE member.model_version_id = ? ORDER BY member.position"""
    found = connection.execute(select(Checkpoint, placed), [model_version_id]).fetchall()
    return located(connection, [noun_of(Checkpoint, row) for row in found])


def index(connection: Connection, index_id: str) -> Index | None:
    """The gradient index with that id."""
    found = _indexes(connection, index_id, None)
    return found[0] if found else None


def indexes_of(connection: Connection, checkpoint_id: str) -> list[Index]:
    """The gradient indexes taken at a checkpoint, in the order they were recorded."""
    return _indexes(connection, None, checkpoint_id)


def weighting(connection: Connection, weighting_id: str) -> Weighting | None:
    """The weighting with that id."""
    row = first_row(connection, select(Weighting, "FROM weighting WHERE weighting_id = ?"), [weighting_id])
    return noun_of(Weighting, row) if row else None


def fidelities(connection: Connection, checkpoint_id: str, before: int | None = None) -> list[Fidelity]:
    """What was measured on a checkpoint, the latest first; with `before`, by events of a smaller sequence only."""
    measured = """
        FROM fidelity WHERE checkpoint_id = $1 AND ($2 IS NULL OR event_sequence < $2)
        ORDER BY event_sequence DESC, fidelity_id"""
    found = connection.execute(select(Fidelity, measured), [checkpoint_id, before]).fetchall()
    return [noun_of(Fidelity, row) for row in found]


def outputs(connection: Connection, output_ids: Sequence[str]) -> list[Output]:
    """The outputs with those ids that are recorded, in the order asked."""
    query = select(Output, "FROM output WHERE output_id IN (SELECT unnest(?))")
    found = [noun_of(Output, row) for row in connection.execute(query, [list(output_ids)]).fetchall()]
    by_id = {output.output_id: output for output in found}
    return [by_id[output_id] for output_id in output_ids if output_id in by_id]


def outputs_of(connection: Connection, model_version_id: str) -> list[Output]:
    """All outputs of a model version, by id."""
    query = select(Output, "FROM output WHERE model_version_id = ? ORDER BY output_id")
    return [noun_of(Output, row) for row in connection.execute(query, [model_version_id]).fetchall()]


def pending_outputs(connection: Connection, model_version_id: str, *, target: Target) -> list[Output]:
    """Outputs of a model version that no audit of it has examined for that target, by time, then id."""
    pending = """
        FROM output
        WHERE model_version_id = ? AND NOT EXISTS (
            SELECT 1 FROM audit_output JOIN audit USING (audit_id)
            WHERE audit_output.output_id = output.output_id AND audit_output.target = ?
                AND audit.model_version_id = output.model_version_id)
        ORDER BY produced_at, output_id"""
    found = connection.execute(select(Output, pending), [model_version_id, target]).fetchall()
    return [noun_of(Output, row) for row in found]


def versions_to_audit(connection: Connection, name: str, *, target: Target, quarantine: str | None) -> list[str]:
    """The versions of a model with work left: outputs to examine for that target, or an audit without its report.

    Outputs that stand in the `quarantine` of that name are not to be examined.
    """
    query = """
        WITH version AS (SELECT model_version_id, version FROM model_version WHERE name = $name)
        SELECT model_version_id FROM version
        WHERE model_version_id IN (
            SELECT model_version_id FROM output
            WHERE model_version_id IN (SELECT model_version_id FROM version)
                AND NOT EXISTS (
                    SELECT 1 FROM audit_output JOIN audit USING (audit_id)
                    WHERE audit_output.output_id = output.output_id AND audit_output.target = $target
                        AND audit.model_version_id = output.model_version_id)
                AND output_id NOT IN (SELECT record_id FROM quarantine WHERE source = $quarantine)
        ) OR model_version_id IN (
            SELECT model_version_id FROM audit WHERE audit_id NOT IN (SELECT audit_id FROM report))
        ORDER BY version"""
    asked = {"name": name, "target": target, "quarantine": quarantine}
    return [row[0] for row in connection.execute(query, asked).fetchall()]


def quarantined(connection: Connection, source: str | None = None, *, before: int | None = None) -> list[Quarantined]:
    """Records that were refused, of one source or of all, in the order they were; with `before`, up to that event."""
    refused = """
        FROM quarantine JOIN event ON event.sequence = quarantine.event_sequence
        WHERE source = coalesce(?, source) AND event_sequence < coalesce(?, event_sequence + 1)
        ORDER BY event_sequence, record_id"""
    found = connection.execute(select(Quarantined, refused), [source, before]).fetchall()
    return [noun_of(Quarantined, row) for row in found]


def examples(connection: Connection, dataset_version_id: str, example_ids: Iterable[str]) -> dict[str, RecordedExample]:
    """Those of the examples that the dataset version has, by id."""
    # The rows are found by id alone first: reading every column of a million examples takes twice as long.
    named = """
        FROM example
        WHERE dataset_version_id = ?
            AND rowid IN (SELECT rowid FROM example WHERE example_id IN (SELECT unnest(?)))
        ORDER BY position"""
    rows = connection.execute(select(RecordedExample, named), [dataset_version_id, list(example_ids)]).fetchall()
    found = [noun_of(RecordedExample, row) for row in rows]
    return {example.example_id: example for example in found}


def personal_names(connection: Connection, dataset_version_id: str) -> frozenset[str]:
    """Attributes of a dataset version that went into the erasable table, erased ones among them."""
    query = """
        SELECT DISTINCT row_key->>2 FROM (SELECT row_key::JSON AS row_key FROM row_commitment
            WHERE table_name = 'personal_attribute') WHERE row_key->>0 = ?"""
    return frozenset(row[0] for row in connection.execute(query, [dataset_version_id]).fetchall())


def attribute_counts(connection: Connection, dataset_version_id: str) -> list[AttributeCount]:
    """How many examples carry each value of each attribute, by attribute, the most frequent first."""
    query = """
        SELECT entry.key, entry.value, count(*)
        FROM (SELECT unnest(map_entries(attributes)) AS entry FROM example WHERE dataset_version_id = ?)
        GROUP BY ALL ORDER BY entry.key, count(*) DESC, entry.value"""
    return [AttributeCount(*row) for row in connection.execute(query, [dataset_version_id]).fetchall()]


def events(connection: Connection, limit: int = 100) -> list[Event]:
    """The latest events, the newest first."""
    found = connection.execute(select(Event, "FROM event ORDER BY sequence DESC LIMIT ?"), [limit]).fetchall()
    return [noun_of(Event, row) for row in found]


def _indexes(connection: Connection, index_id: str | None, checkpoint_id: str | None) -> list[Index]:
    standing = """
        FROM gradient_index
        LEFT JOIN (
            SELECT
                index_id,
                arg_max(table_version, revision) AS table_version,
                arg_max(rows_sha256, revision) AS rows_sha256
            FROM index_revision GROUP BY index_id
        ) AS standing USING (index_id)
        WHERE index_id = coalesce(?, index_id) AND checkpoint_id = coalesce(?, checkpoint_id)
        ORDER BY event_sequence"""
    query = select(
        Index,
        standing,
        table_version="coalesce(standing.table_version, gradient_index.table_version)",
        rows_sha256="coalesce(standing.rows_sha256, gradient_index.rows_sha256)",
    )
    found = connection.execute(query, [index_id, checkpoint_id]).fetchall()
    return located(connection, [noun_of(Index, row) for row in found])
