"""What became of outputs that a source delivered: recorded, and reported on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import duckdb


@dataclass(frozen=True)
class ReportedOutput:
    """The first reported audit that examined an output, and where its report lies in MLflow."""

    output_id: str
    audit_id: str
    mlflow_experiment_id: str
    mlflow_run_id: str


def recorded_payloads(connection: duckdb.DuckDBPyConnection, output_ids: Sequence[str]) -> dict[str, str]:
    """The payload digests of those of the outputs that are recorded, by id."""
    query = "SELECT output_id, payload_sha256 FROM output WHERE output_id IN (SELECT unnest(?))"
    return dict(connection.execute(query, [list(output_ids)]).fetchall())


def reported_outputs(connection: duckdb.DuckDBPyConnection, output_ids: Sequence[str]) -> dict[str, ReportedOutput]:
    """Those of the outputs that an audit with a report in MLflow examined, by id."""
    query = """
        SELECT output_id, audit_id, mlflow_experiment_id, mlflow_run_id
        FROM audit_output JOIN report USING (audit_id)
        WHERE output_id IN (SELECT unnest(?)) AND mlflow_run_id IS NOT NULL
        QUALIFY row_number() OVER (PARTITION BY output_id ORDER BY report.event_sequence) = 1"""
    return {row[0]: ReportedOutput(*row) for row in connection.execute(query, [list(output_ids)]).fetchall()}


def pending_by_source(connection: duckdb.DuckDBPyConnection) -> dict[str, int]:
    """How many recorded outputs of each source no audit has examined, whatever its target."""
    query = """
        SELECT source, count(*) FROM output ANTI JOIN audit_output USING (output_id) GROUP BY source ORDER BY source"""
    return dict(connection.execute(query).fetchall())
