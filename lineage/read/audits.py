"""Reading audits back: the audit itself, all its evidence, its report."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import PurePath
from typing import Any

import duckdb

from gradtrail.errors import LedgerError, NotFoundError
from gradtrail.lineage.connections import first_row
from gradtrail.lineage.read.answers import AuditDetails, AuditTold, RecordedReport
from gradtrail.lineage.read.catalogue import model_version
from gradtrail.lineage.read.places import located
from gradtrail.lineage.read.revisions import current_digests
from gradtrail.lineage.schema.nouns import Noun, noun_of, select
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
    query = select(
        _Recorded,
        "FROM audit JOIN event ON event.sequence = audit.event_sequence WHERE audit_id = ?",
        outputs="[]",
        index_ids="[]",
        dataset_version_id="''",
    )
    row = first_row(connection, query, [audit_id])
    if row is None:
        return None
    found = noun_of(_Recorded, row)
    examined = connection.execute(
        "SELECT output_id, target FROM audit_output WHERE audit_id = ? ORDER BY position", [audit_id]
    ).fetchall()
    read = """
        SELECT index_id, dataset_version_id FROM audit_index LEFT JOIN gradient_index USING (index_id)
        WHERE audit_id = ? ORDER BY position"""
    indexes = connection.execute(read, [audit_id]).fetchall()
    audit = replace(found.audit, outputs=tuple(examined), index_ids=tuple(index_id for index_id, _ in indexes))
    return replace(found, audit=audit, dataset_version_id=(indexes[0][1] if indexes else None) or "")


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
    influences = select(ExampleInfluence, "FROM example_influence WHERE audit_id = ? ORDER BY side DESC, rank")
    carried = """
        FROM group_contribution WHERE audit_id = ? AND (output_id IS NULL OR output_id = coalesce(?, output_id))
        ORDER BY position"""
    contributions = select(GroupContribution, carried, group="group_name")
    return AuditDetails(
        **vars(told),
        model_version=version,
        influences=_all(connection, ExampleInfluence, influences, [audit_id]),
        group_contributions=_all(connection, GroupContribution, contributions, [audit_id, output_id]),
    )


def told_by(connection: Connection, audit_id: str, output_id: str | None = None) -> AuditTold:
    """What an audit says of its outputs, or of one of them and of itself.

    Raises:
        NotFoundError: no such audit.
    """
    found = _recorded(connection, audit_id)
    if found is None:
        raise NotFoundError(f"There is no audit {audit_id} in the ledger.", "`gradtrail report` lists the audits.")
    results = "FROM audit_output WHERE audit_id = ? AND output_id = coalesce(?, output_id) ORDER BY position"
    attributions = """
        FROM attribution JOIN audit_output USING (audit_id, output_id)
        WHERE audit_id = $1 AND output_id = coalesce($2, output_id) AND attribution.event_sequence = $3
        ORDER BY audit_output.position, side DESC, rank"""
    shares = """
        FROM share
        WHERE audit_id = $1 AND (output_id IS NULL OR output_id = coalesce($2, output_id)) AND event_sequence >= $3
        ORDER BY output_id NULLS FIRST, side DESC, attribute, share DESC, value"""
    findings = """
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
        results=_all(connection, OutputResult, select(OutputResult, results), both),
        attributions=_all(connection, Attribution, select(Attribution, attributions), placed),
        shares=_all(connection, Share, select(Share, shares), placed),
        findings=_all(connection, Finding, select(Finding, findings), both),
    )


def report_of(connection: Connection, audit_id: str) -> RecordedReport | None:
    """The report of an audit, with the digests its files have since they were last written."""
    query = select(
        RecordedReport, "FROM report JOIN event ON event.sequence = report.event_sequence WHERE audit_id = ?"
    )
    row = first_row(connection, query, [audit_id])
    if row is None:
        return None
    [report] = located(connection, [noun_of(RecordedReport, row)])
    revised = current_digests(connection, "report", audit_id)
    if revised is None:
        return report
    html_name = PurePath(report.html_uri).name
    beside = {name: digest for name, digest in revised.items() if name != html_name}
    return replace(report, html_sha256=revised[html_name], file_sha256=beside)


def _all(connection: Connection, noun: type[Noun], query: str, parameters: list[Any]) -> tuple[Noun, ...]:
    return tuple(noun_of(noun, row) for row in connection.execute(query, parameters).fetchall())
