"""The evidence of a finding as SQL: one statement that `gradtrail sql` answers from the ledger alone.

Ids and values stand in it as quoted literals, so that it can be copied from a report as it is.
"""

# ruff: noqa: S608 - nothing here runs: it is text for people to copy, and every value in it is a quoted literal

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gradtrail.nouns import Finding

_MOST_NAMED = 200


def evidence_sql(audit_id: str, finding: Finding) -> str:
    """The statement that shows what a finding of an audit rests on; empty for a kind that this gradtrail lacks."""
    statement = _STATEMENTS.get(str(finding.evidence.get("kind")))
    return statement(_text(audit_id), finding.output_id, finding.evidence) if statement else ""


def _share_above(audit: str, output_id: str | None, evidence: Mapping[str, Any]) -> str:
    concerned = (
        f"share.attribute = {_text(evidence['attribute'])} AND share.value = {_text(evidence['value'])} "
        f"AND share.side = {_text(evidence['side'])}"
    )
    if output_id is None and evidence.get("only_outputs"):
        # An output that no such example supports has no row in share, and counts as 0.
        return (
            f"SELECT {_text(evidence['value'])} AS value, count(*) AS outputs, avg(coalesce(share.share, 0)) AS share, "
            "any_value(share.training_share) AS training_share "
            "FROM audit_output JOIN output USING (output_id) LEFT JOIN share ON share.audit_id = audit_output.audit_id "
            f"AND share.output_id = audit_output.output_id AND {concerned} "
            f"WHERE audit_output.audit_id = {audit} AND {_slice(evidence)}"
        )
    which = "share.output_id IS NULL" if output_id is None else f"share.output_id = {_text(output_id)}"
    return (
        "SELECT share.value, share.share, share.training_share, share.interval_low, share.interval_high FROM share "
        f"WHERE share.audit_id = {audit} AND {concerned} AND {which}"
    )


def _share_drift(audit: str, _output_id: str | None, evidence: Mapping[str, Any]) -> str:
    audits = ", ".join([audit, *(_text(earlier) for earlier in evidence["earlier_audits"])])
    return (
        "SELECT event.recorded_at, audit.audit_id, audit.model_version_id, coalesce(share.share, 0) AS share, "
        "share.interval_low, share.interval_high "
        "FROM audit JOIN event ON event.sequence = audit.event_sequence LEFT JOIN share "
        f"ON share.audit_id = audit.audit_id AND share.attribute = {_text(evidence['attribute'])} "
        f"AND share.value = {_text(evidence['value'])} AND share.side = {_text(evidence['side'])} "
        f"AND share.output_id IS NULL WHERE audit.audit_id IN ({audits}) ORDER BY event.sequence"
    )


def _among_proponents(audit: str, output_id: str | None, evidence: Mapping[str, Any]) -> str:
    names = evidence.get("example_ids") or [evidence["example_id"]]
    return (
        "SELECT rank, example_id, score, score / proponent_mass AS share, source, licence, attributes "
        "FROM output_lineage JOIN audit_output USING (audit_id, output_id) "
        f"WHERE audit_id = {audit} AND output_id = {_text(str(output_id))} AND side = 'proponent' "
        f"AND example_id IN ({_listed(names)}) ORDER BY rank"
    )


def _copies_of_output(audit: str, output_id: str | None, evidence: Mapping[str, Any]) -> str:
    rows = ", ".join(
        f"({_text(name)}, {_number(cosine)}, {str(name in evidence['same_inputs']).lower()})"
        for name, cosine in list(evidence["cosines"].items())[:_MOST_NAMED]
    )
    return (
        "SELECT rank, example_id, measured.cosine, measured.same_input, content_sha256, source, licence, attributes "
        f"FROM output_lineage JOIN (VALUES {rows}) AS measured (example_id, cosine, same_input) USING (example_id) "
        f"WHERE audit_id = {audit} AND output_id = {_text(str(output_id))} ORDER BY rank"
    )


def _not_reproduced(audit: str, output_id: str | None, _evidence: Mapping[str, Any]) -> str:
    return (
        "SELECT output_id, output.produced_at, output.model_version_id, prediction, loss, reproduced "
        "FROM audit_output JOIN output USING (output_id) "
        f"WHERE audit_id = {audit} AND output_id = {_text(str(output_id))}"
    )


def _coverage_below(audit: str, _output_id: str | None, _evidence: Mapping[str, Any]) -> str:
    return (
        "SELECT index_id, covered_parameters, total_parameters, uncovered, indexed_examples, total_examples, "
        "quarantined "
        f"FROM audit_index JOIN gradient_index USING (index_id) WHERE audit_id = {audit} ORDER BY audit_index.position"
    )


def _fidelity_below(audit: str, _output_id: str | None, _evidence: Mapping[str, Any]) -> str:
    return (
        "SELECT serving_checkpoint.checkpoint_id, audit.method, fidelity.metric, fidelity.value, "
        "fidelity.standard_error, fidelity.ceiling, fidelity.queries, fidelity.parameters "
        "FROM audit JOIN serving_checkpoint USING (model_version_id) LEFT JOIN fidelity "
        "ON fidelity.checkpoint_id = serving_checkpoint.checkpoint_id AND fidelity.method = audit.method "
        "AND fidelity.weighting_id = audit.weighting_id AND fidelity.event_sequence < audit.event_sequence "
        f"WHERE audit.audit_id = {audit} ORDER BY fidelity.event_sequence DESC"
    )


def _suspect_labels(audit: str, _output_id: str | None, evidence: Mapping[str, Any]) -> str:
    names = _listed(evidence["example_ids"])
    measure = evidence.get("measure", "opposition")
    if measure == "self_influence":
        rows = ", ".join(
            f"({_text(name)}, {_number(multiple)})"
            for name, multiple in zip(evidence["example_ids"], evidence["multiples"], strict=True)
        )
        return (
            "SELECT example_id, measured.times_the_mean, content_sha256, attributes FROM example "
            "JOIN audit_dataset USING (dataset_version_id) "
            f"JOIN (VALUES {rows}) AS measured (example_id, times_the_mean) USING (example_id) "
            f"WHERE audit_id = {audit} ORDER BY times_the_mean DESC"
        )
    if measure == "other_label":
        return (
            "SELECT example_id, attributes, output_id, prediction, rank, score / opponent_mass AS share "
            "FROM output_lineage JOIN audit_output USING (audit_id, output_id) "
            f"WHERE audit_id = {audit} AND side = 'opponent' AND example_id IN ({names}) "
            f"AND abs(score / opponent_mass) > {_number(evidence['limit'])} ORDER BY share DESC"
        )
    return (
        "SELECT rank, example_id, share, attributes FROM example_influence JOIN audit_dataset USING (audit_id) "
        f"JOIN example USING (dataset_version_id, example_id) WHERE audit_id = {audit} AND side = 'opponent' "
        f"AND example_id IN ({names}) ORDER BY rank"
    )


def _slice(evidence: Mapping[str, Any]) -> str:
    columns = {"prediction": "audit_output.prediction", "source": "output.source"}
    return " AND ".join(f"{columns[name]} = {_text(value)}" for name, value in evidence["only_outputs"].items())


def _listed(names: Sequence[str]) -> str:
    return ", ".join(_text(name) for name in names[:_MOST_NAMED])


def _text(value: str) -> str:
    """A text as a SQL literal."""
    return "'" + value.replace("'", "''") + "'"


def _number(value: float) -> str:
    return f"{float(value)!r}::DOUBLE"


_STATEMENTS: Mapping[str, Callable[[str, str | None, Mapping[str, Any]], str]] = {
    "share_above": _share_above,
    "share_drift": _share_drift,
    "one_example_dominates": _among_proponents,
    "copies_of_output": _copies_of_output,
    "withdrawn_among_top": _among_proponents,
    "unknown_among_top": _among_proponents,
    "not_reproduced": _not_reproduced,
    "coverage_below": _coverage_below,
    "fidelity_below": _fidelity_below,
    "suspect_labels": _suspect_labels,
}
