"""Reading audits back: the audit itself, all its evidence, its report."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import PurePath

import duckdb

from gradtrail.errors import LedgerError, NotFoundError
from gradtrail.lineage.connections import first_row
from gradtrail.lineage.read.answers import AuditDetails, AuditTold, RecordedReport
from gradtrail.lineage.read.catalogue import model_version
from gradtrail.lineage.read.revisions import current_digests
from gradtrail.nouns import Attribution, Audit, ExampleInfluence, Finding, GroupContribution, OutputResult, Share

Connection = duckdb.DuckDBPyConnection


def audit(connection: Connection, audit_id: str) -> Audit | None:
    """The audit with that id."""
    found = _recorded(connection, audit_id)
    return found.audit if found else None


@dataclass(frozen=True)
class _Recorded:
    """An audit, when it was recorded, and what it scored against."""

    audit: Audit
    recorded_at: datetime
    event_sequence: int
    method_notes: str
    dataset_version_id: str


def _recorded(connection: Connection, audit_id: str) -> _Recorded | None:
    query = """
        SELECT model_version_id, method, parameters, weighting_id, policy_sha256, method_notes, event_sequence,
            recorded_at
        FROM audit JOIN event ON event.sequence = audit.event_sequence WHERE audit_id = ?"""
    row = first_row(connection, query, [audit_id])
    if row is None:
        return None
    examined = connection.execute(
        "SELECT output_id, target FROM audit_output WHERE audit_id = ? ORDER BY position", [audit_id]
    ).fetchall()
    read = """
        SELECT index_id, dataset_version_id FROM audit_index LEFT JOIN gradient_index USING (index_id)
        WHERE audit_id = ? ORDER BY position"""
    indexes = connection.execute(read, [audit_id]).fetchall()
    found = Audit(
        outputs=tuple(examined),
        model_version_id=row[0],
        index_ids=tuple(index_id for index_id, _ in indexes),
        method=row[1],
        parameters=json.loads(row[2]),
        weighting_id=row[3],
        policy_sha256=row[4],
    )
    return _Recorded(found, row[7], row[6], row[5], (indexes[0][1] if indexes else None) or "")


def audits(connection: Connection, model_version_id: str | None = None) -> list[Audit]:
    """The audits of a model version, or of all, in the order they were recorded."""
    query = """
        SELECT audit_id FROM audit WHERE model_version_id = coalesce(?, model_version_id) ORDER BY event_sequence"""
    found = connection.execute(query, [model_version_id]).fetchall()
    return [recorded for row in found if (recorded := audit(connection, row[0]))]


def unreported_audits(connection: Connection, model_version_id: str) -> list[str]:
    """Ids of the audits of a model version that have no report yet, in the order they were recorded."""
    query = """
        SELECT audit_id FROM audit
        WHERE model_version_id = ? AND NOT EXISTS (SELECT 1 FROM report WHERE report.audit_id = audit.audit_id)
        ORDER BY event_sequence"""
    return [row[0] for row in connection.execute(query, [model_version_id]).fetchall()]


def latest_audit(connection: Connection, model_version_id: str | None = None) -> Audit | None:
    """The audit of a model version, or of any, that was recorded last."""
    query = """
        SELECT audit_id FROM audit WHERE model_version_id = coalesce(?, model_version_id)
        ORDER BY event_sequence DESC LIMIT 1"""
    row = first_row(connection, query, [model_version_id])
    return audit(connection, row[0]) if row else None


def newest_audits(connection: Connection, model_version_id: str) -> list[str]:
    """Ids of the audits of a model version since outputs of it were recorded last before an audit, the oldest first.

    One run over many outputs makes several, one after the other, of what was recorded before the first of them.
    """
    query = """
        SELECT audit_id FROM audit WHERE model_version_id = $id AND event_sequence > coalesce((
            SELECT max(event_sequence) FROM output WHERE model_version_id = $id AND event_sequence < (
                SELECT max(event_sequence) FROM audit WHERE model_version_id = $id)), 0)
        ORDER BY event_sequence"""
    return [row[0] for row in connection.execute(query, {"id": model_version_id}).fetchall()]


def audit_details(connection: Connection, audit_id: str, *, output_id: str | None = None) -> AuditDetails:
    """An audit with all its evidence; with `output_id`, only what concerns that output or the audit as a whole.

    Raises:
        NotFoundError: no such audit.
    """
    told = told_by(connection, audit_id, output_id)
    version = model_version(connection, told.audit.model_version_id)
    if version is None:
        raise LedgerError(
            f"The model version of audit {audit_id} is missing from the ledger.", "Run `gradtrail verify`."
        )
    influences = """
        SELECT example_id, side, rank, share FROM example_influence WHERE audit_id = ? ORDER BY side DESC, rank"""
    contributions = """
        SELECT output_id, side, group_name, share
        FROM group_contribution WHERE audit_id = ? AND (output_id IS NULL OR output_id = coalesce(?, output_id))
        ORDER BY position"""
    return AuditDetails(
        **vars(told),
        model_version=version,
        influences=tuple(ExampleInfluence(*row) for row in connection.execute(influences, [audit_id]).fetchall()),
        group_contributions=tuple(
            GroupContribution(*row) for row in connection.execute(contributions, [audit_id, output_id]).fetchall()
        ),
    )


def told_by(connection: Connection, audit_id: str, output_id: str | None = None) -> AuditTold:
    """What an audit says of its outputs, or of one of them and of itself.

    Raises:
        NotFoundError: no such audit.
    """
    found = _recorded(connection, audit_id)
    if found is None:
        raise NotFoundError(f"There is no audit {audit_id} in the ledger.", "`gradtrail report` lists the audits.")
    results = """
        SELECT output_id, prediction, loss, reproduced, proponent_mass, opponent_mass
        FROM audit_output WHERE audit_id = ? AND output_id = coalesce(?, output_id) ORDER BY position"""
    attributions = """
        SELECT output_id, example_id, side, rank, score
        FROM attribution JOIN audit_output USING (audit_id, output_id)
        WHERE audit_id = $1 AND output_id = coalesce($2, output_id) AND attribution.event_sequence = $3
        ORDER BY audit_output.position, side DESC, rank"""
    shares = """
        SELECT output_id, side, attribute, value, share, training_share, interval_low, interval_high
        FROM share
        WHERE audit_id = $1 AND (output_id IS NULL OR output_id = coalesce($2, output_id)) AND event_sequence >= $3
        ORDER BY output_id NULLS FIRST, side DESC, attribute, share DESC, value"""
    findings = """
        SELECT rule, severity, message, output_id, evidence
        FROM finding WHERE audit_id = ? AND (output_id IS NULL OR output_id = coalesce(?, output_id))
        ORDER BY position"""
    both = [audit_id, output_id]
    # By the event too: it says in which part of millions of rows the audit lies.
    placed = [*both, found.event_sequence]
    return AuditTold(
        audit=found.audit,
        recorded_at=found.recorded_at,
        event_sequence=found.event_sequence,
        dataset_version_id=found.dataset_version_id,
        method_notes=json.loads(found.method_notes),
        results=tuple(OutputResult(*row) for row in connection.execute(results, both).fetchall()),
        attributions=tuple(Attribution(*row) for row in connection.execute(attributions, placed).fetchall()),
        shares=tuple(Share(*row) for row in connection.execute(shares, placed).fetchall()),
        findings=tuple(
            Finding(rule, severity, message, concerned, json.loads(evidence))
            for rule, severity, message, concerned, evidence in connection.execute(findings, both).fetchall()
        ),
    )


def report_of(connection: Connection, audit_id: str) -> RecordedReport | None:
    """The report of an audit, with the digests its files have since they were last written."""
    query = """
        SELECT audit_id, html_uri, html_sha256, file_sha256, mlflow_run_id, mlflow_experiment_id, recorded_at
        FROM report JOIN event ON event.sequence = report.event_sequence WHERE audit_id = ?"""
    row = first_row(connection, query, [audit_id])
    if row is None:
        return None
    report = RecordedReport(*row)
    revised = current_digests(connection, "report", audit_id)
    if revised is None:
        return report
    html_name = PurePath(report.html_uri).name
    beside = {name: digest for name, digest in revised.items() if name != html_name}
    return replace(report, html_sha256=revised[html_name], file_sha256=beside)
