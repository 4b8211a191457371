"""One output explained: the chain behind it and what an audit said about it."""

from __future__ import annotations

from dataclasses import replace

import duckdb

from gradtrail.errors import NotFoundError
from gradtrail.lineage.connections import first_row, recorded
from gradtrail.lineage.read.answers import AuditTold, ExplainedExample, Explanation
from gradtrail.lineage.read.audits import report_of, told_by
from gradtrail.lineage.read.catalogue import (
    checkpoints_of,
    dataset_version,
    examples,
    index,
    model_version,
    outputs,
    run,
)
from gradtrail.lineage.read.closure import resolve
from gradtrail.nouns import Attribution, Output

Connection = duckdb.DuckDBPyConnection


def explain(connection: Connection, output_id: str, *, audit_id: str | None = None) -> Explanation:
    """The chain behind an output, and what one audit (by default the latest) said about it.

    Raises:
        NotFoundError: no such output, or that audit does not examine it.
    """
    output = _output(connection, output_id)
    query = """
        SELECT audit_id FROM audit_output JOIN audit USING (audit_id)
        WHERE output_id = ? AND audit_id = coalesce(?, audit_id) ORDER BY audit.event_sequence DESC LIMIT 1"""
    latest = first_row(connection, query, [output.output_id, audit_id])
    if latest is None and audit_id is not None:
        raise NotFoundError(f"Audit {audit_id} does not examine output {output.output_id}.", "Leave the audit out.")
    version = recorded(model_version(connection, output.model_version_id), output.model_version_id)
    told = told_by(connection, latest[0], output.output_id) if latest else None
    trained_on = told.dataset_version_id if told else version.dataset_version_id
    chain = Explanation(
        output,
        version,
        recorded(run(connection, version.run_id), version.run_id),
        checkpoints_of(connection, version.model_version_id)[-1],
        recorded(dataset_version(connection, trained_on), trained_on),
    )
    if told is None:
        return chain
    explained = _explained(connection, told)
    return replace(
        chain,
        audit=told.audit,
        audited_at=told.recorded_at,
        method_notes=told.method_notes,
        result=told.results[0],
        proponents=tuple(each for each in explained if each.attribution.side == "proponent"),
        opponents=tuple(each for each in explained if each.attribution.side == "opponent"),
        shares=told.shares,
        findings=told.findings,
        report=report_of(connection, told.audit.audit_id),
        measured_with=recorded(index(connection, told.audit.index_ids[-1]), told.audit.index_ids[-1]).measured_with,
    )


def _output(connection: Connection, text: str) -> Output:
    # Most ask with an exact id; looking for whatever else has it would go through every example.
    found = outputs(connection, [text])
    if not found:
        kind, resolved = resolve(connection, text)
        if kind != "output":
            what = kind.replace("_", " ")
            raise NotFoundError(f"{resolved} is a {what}, not an output.", "Give the id of an output.")
        found = outputs(connection, [resolved])
    return found[0]


def _explained(connection: Connection, told: AuditTold) -> list[ExplainedExample]:
    known = examples(connection, told.dataset_version_id, {each.example_id for each in told.attributions})

    def explained(attribution: Attribution) -> ExplainedExample:
        placed = known.get(attribution.example_id)
        if placed is None:
            return ExplainedExample(attribution, None, None, {})
        return ExplainedExample(attribution, placed.content_sha256, placed.position, placed.attributes)

    return [explained(each) for each in told.attributions]
