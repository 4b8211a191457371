"""All audits at a glance: what trend and report index draw, in a few queries however many audits there are."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import duckdb

from gradtrail.nouns import Finding, Severity, Share, Target

Connection = duckdb.DuckDBPyConnection
_READ = (
    *("audit_id", "number", "recorded_at", "event_sequence", "model", "version", "checkpoint_id"),
    *("run_id", "run_experiment_id", "method", "parameters", "weighting_id", "dataset_version_id"),
    *("audit_run_id", "audit_experiment_id"),
)
"""Columns of the first query, in its order."""


@dataclass(frozen=True)
class FiredRule:
    """A rule that fired in an audit, `count` times. `message` is the sentence of its first finding."""

    rule: str
    severity: Severity
    count: int
    message: str


@dataclass(frozen=True)
class PastAudit:
    """One audit as one line of a history.

    `number` counts the audits of its model in the order they were recorded, from 1. Shares are those over all outputs,
    by attribute and falling share. The coverage is the smallest over the indexes. The ids of its MLflow run are empty
    before its report is recorded; those of the training run where the ledger does not know it.
    """

    audit_id: str
    number: int
    recorded_at: datetime
    event_sequence: int
    model: str
    version: int
    checkpoint_id: str
    run_id: str
    run_experiment_id: str
    method: str
    parameters: Mapping[str, Any]
    weighting_id: str
    dataset_version_id: str
    index_ids: tuple[str, ...]
    target: Target
    outputs: int
    not_reproduced: int
    parameter_share: float
    example_share: float
    shares: tuple[Share, ...]
    fired: tuple[FiredRule, ...]
    audit_run_id: str
    audit_experiment_id: str

    @property
    def reported(self) -> bool:
        """Whether its report is recorded as done."""
        return bool(self.audit_run_id)

    def findings(self, severity: Severity) -> int:
        """How many findings of that severity it has."""
        return sum(rule.count for rule in self.fired if rule.severity == severity)


@dataclass(frozen=True)
class NumberedAudit:
    """An audit's place: among those of its model, from 1, and in the ledger."""

    audit_id: str
    number: int
    event_sequence: int
    model: str
    recorded_at: datetime


def numbered_audits(connection: Connection, model: str | None = None) -> list[NumberedAudit]:
    """The places of the audits of a model, or of all models, in the order they were recorded."""
    query = """
        SELECT
            audit.audit_id,
            row_number() OVER (PARTITION BY model_version.name ORDER BY audit.event_sequence),
            audit.event_sequence, model_version.name, event.recorded_at
        FROM audit
        JOIN event ON event.sequence = audit.event_sequence
        JOIN model_version ON model_version.model_version_id = audit.model_version_id
        WHERE model_version.name = coalesce(?, model_version.name)
        ORDER BY audit.event_sequence"""
    return [NumberedAudit(*row) for row in connection.execute(query, [model]).fetchall()]


def past_audits(
    connection: Connection, model: str | None = None, audit_ids: Collection[str] | None = None
) -> list[PastAudit]:
    """The audits of a model, or of all models, in the order they were recorded; or only some of them.

    Args:
        connection: on the ledger.
        model: its name; None for all models.
        audit_ids: those wanted, None for all: what each costs is then not paid for all that were ever made.
    """
    header = """
        SELECT
            audit.audit_id,
            row_number() OVER (PARTITION BY model_version.name ORDER BY audit.event_sequence),
            event.recorded_at, audit.event_sequence, model_version.name, model_version.version,
            coalesce(serving_checkpoint.checkpoint_id, ''),
            model_version.run_id, coalesce(training_run.experiment_id, ''),
            audit.method, audit.parameters, audit.weighting_id, coalesce(audit_dataset.dataset_version_id, ''),
            coalesce(report.mlflow_run_id, ''), coalesce(report.mlflow_experiment_id, '')
        FROM audit
        JOIN event ON event.sequence = audit.event_sequence
        JOIN model_version ON model_version.model_version_id = audit.model_version_id
        LEFT JOIN serving_checkpoint ON serving_checkpoint.model_version_id = audit.model_version_id
        LEFT JOIN audit_dataset ON audit_dataset.audit_id = audit.audit_id
        LEFT JOIN training_run ON training_run.run_id = model_version.run_id
        LEFT JOIN report ON report.audit_id = audit.audit_id
        WHERE model_version.name = coalesce(?, model_version.name)
        ORDER BY audit.event_sequence"""
    rows = connection.execute(header, [model]).fetchall()
    if audit_ids is not None:
        wanted = set(audit_ids)
        rows = [row for row in rows if row[0] in wanted]
    audit_ids = [row[0] for row in rows]
    outputs = _outputs(connection, audit_ids)
    indexes = _indexes(connection, audit_ids)
    shares = _shares(connection, audit_ids)
    fired = _fired(connection, audit_ids)
    found = []
    for row in rows:
        count, not_reproduced, target = outputs.get(row[0], (0, 0, "emitted"))
        index_ids, parameter_share, example_share = indexes.get(row[0], ([], 0.0, 0.0))
        read: dict[str, Any] = dict(zip(_READ, row, strict=True))
        read["parameters"] = json.loads(read["parameters"])
        found.append(
            PastAudit(
                **read,
                index_ids=tuple(index_ids),
                target=target,
                outputs=count,
                not_reproduced=not_reproduced,
                parameter_share=parameter_share,
                example_share=example_share,
                shares=tuple(shares[row[0]]),
                fired=tuple(fired[row[0]]),
            )
        )
    return found


def findings_of(connection: Connection, audit_id: str) -> list[Finding]:
    """The findings of an audit in its order."""
    query = "SELECT rule, severity, message, output_id, evidence FROM finding WHERE audit_id = ? ORDER BY position"
    found = connection.execute(query, [audit_id]).fetchall()
    return [
        Finding(rule, severity, message, output_id, json.loads(evidence))
        for rule, severity, message, output_id, evidence in found
    ]


def fidelity_events(connection: Connection) -> dict[str, list[int]]:
    """For each checkpoint the events that recorded a fidelity of it, in order."""
    query = "SELECT checkpoint_id, list(event_sequence ORDER BY event_sequence) FROM fidelity GROUP BY checkpoint_id"
    return dict(connection.execute(query).fetchall())


def _outputs(connection: Connection, audit_ids: list[str]) -> dict[str, tuple[int, int, Target]]:
    query = """
        SELECT audit_id, count(*), count_if(NOT reproduced), min_by(target, position)
        FROM audit_output WHERE audit_id IN (SELECT unnest(?)) GROUP BY audit_id"""
    return {row[0]: row[1:] for row in connection.execute(query, [audit_ids]).fetchall()}


def _indexes(connection: Connection, audit_ids: list[str]) -> dict[str, tuple[list[str], float, float]]:
    query = """
        SELECT
            audit_id,
            list(index_id ORDER BY position),
            coalesce(min(covered_parameters / nullif(total_parameters, 0)), 0),
            coalesce(min(indexed_examples / nullif(total_examples, 0)), 0)
        FROM audit_index JOIN gradient_index USING (index_id)
        WHERE audit_id IN (SELECT unnest(?)) GROUP BY audit_id"""
    return {row[0]: row[1:] for row in connection.execute(query, [audit_ids]).fetchall()}


def _shares(connection: Connection, audit_ids: list[str]) -> dict[str, list[Share]]:
    query = """
        SELECT audit_id, output_id, side, attribute, value, share, training_share, interval_low, interval_high
        FROM share WHERE output_id IS NULL AND audit_id IN (SELECT unnest(?))
        ORDER BY side DESC, attribute, share DESC, value"""
    found: dict[str, list[Share]] = defaultdict(list)
    for audit_id, *share in connection.execute(query, [audit_ids]).fetchall():
        found[audit_id].append(Share(*share))
    return found


def _fired(connection: Connection, audit_ids: list[str]) -> dict[str, list[FiredRule]]:
    query = """
        SELECT audit_id, rule, severity, count(*), min_by(message, position)
        FROM finding WHERE audit_id IN (SELECT unnest(?)) GROUP BY audit_id, rule, severity
        ORDER BY array_position(['high', 'medium', 'low', 'info'], severity), min(position)"""
    found: dict[str, list[FiredRule]] = defaultdict(list)
    for audit_id, *rule in connection.execute(query, [audit_ids]).fetchall():
        found[audit_id].append(FiredRule(*rule))
    return found
