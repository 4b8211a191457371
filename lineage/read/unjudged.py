"""Outputs that no audit covers because they were refused."""

from __future__ import annotations

from dataclasses import dataclass

import duckdb

from gradtrail.lineage.read.audits import newest_audits
from gradtrail.nouns import Target

_OWN_STEPS = ("measuring", "measuring labels", "registry")
"""Names of quarantines that are not of reading."""


@dataclass(frozen=True)
class RefusedLast:
    """What was refused since the audits before the last ones, or since the last ones where that is anything.

    Of what was refused at reading the ledger does not know the model: it may be any.
    """

    at_reading: int = 0
    at_measuring: int = 0
    after_the_audits: bool = False


def refused_outputs(
    connection: duckdb.DuckDBPyConnection, model_version_id: str, quarantine: str, target: Target
) -> int:
    """How many recorded outputs of a model version stand in that quarantine and in no audit of the target."""
    query = """
        SELECT count(*) FROM output
        WHERE model_version_id = $id
            AND output_id IN (SELECT record_id FROM quarantine WHERE source = $quarantine)
            AND output_id NOT IN (
                SELECT output_id FROM audit_output JOIN audit USING (audit_id)
                WHERE audit_output.target = $target AND audit.model_version_id = $id)"""
    asked = {"id": model_version_id, "quarantine": quarantine, "target": target}
    [(count,)] = connection.execute(query, asked).fetchall()
    return int(count)


def refused_last(connection: duckdb.DuckDBPyConnection, model_version_id: str, quarantine: str) -> RefusedLast:
    """What the last runs refused of a model version's outputs, and at reading of any model's."""
    newest = newest_audits(connection, model_version_id)
    bounds = """
        SELECT
            coalesce(max(event_sequence) FILTER (audit_id IN (SELECT unnest($newest))), 0),
            coalesce(max(event_sequence) FILTER (audit_id NOT IN (SELECT unnest($newest))), 0)
        FROM audit WHERE model_version_id = $id"""
    [(last, before)] = connection.execute(bounds, {"id": model_version_id, "newest": newest}).fetchall()
    since_last = _refused(connection, model_version_id, quarantine, last, after=True)
    if last and (since_last.at_reading or since_last.at_measuring):
        return since_last
    return _refused(connection, model_version_id, quarantine, before, after=not last)


def _refused(
    connection: duckdb.DuckDBPyConnection, model_version_id: str, quarantine: str, since: int, *, after: bool
) -> RefusedLast:
    query = """
        SELECT
            count(*) FILTER (NOT list_contains($steps, source)),
            count(DISTINCT record_id) FILTER (
                source = $quarantine AND record_id IN (SELECT output_id FROM output WHERE model_version_id = $id)
                AND record_id NOT IN (SELECT output_id FROM audit_output))
        FROM quarantine WHERE event_sequence > $since"""
    asked = {"id": model_version_id, "quarantine": quarantine, "since": since, "steps": list(_OWN_STEPS)}
    [(at_reading, at_measuring)] = connection.execute(query, asked).fetchall()
    return RefusedLast(at_reading, at_measuring, after and bool(at_reading or at_measuring))
