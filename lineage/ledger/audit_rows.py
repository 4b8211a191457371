"""From an audit and its evidence to rows; evidence that does not fit the audit is refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isclose
from typing import Any

from gradtrail.errors import DataError
from gradtrail.lineage.chain.rows import Rows, rows_of
from gradtrail.lineage.schema.json_columns import as_json, json_text
from gradtrail.nouns import (
    Attribution,
    Audit,
    ExampleInfluence,
    Finding,
    GroupContribution,
    OutputResult,
    Share,
)

_CONTRIBUTION_TOLERANCE = 1e-6


def audit_rows(
    audit: Audit,
    *,
    method_notes: Mapping[str, Any],
    results: Sequence[OutputResult],
    attributions: Sequence[Attribution],
    shares: Sequence[Share],
    influences: Sequence[ExampleInfluence],
    findings: Sequence[Finding],
    group_contributions: Sequence[GroupContribution] = (),
) -> list[Rows]:
    """Rows of audit and of the seven tables that hang on it, audit first.

    Raises:
        DataError: also when the evidence does not fit the audit's outputs, a score's sign contradicts its side, or the
            contributions of groups do not add up to 1.
    """
    with as_json("audit"):
        audit_id = audit.audit_id
    _refuse_strangers(audit, results, attributions, [*shares, *findings, *group_contributions])
    _refuse_partial_contributions(audit_id, group_contributions)
    indexes = ((audit_id, position, index_id) for position, index_id in enumerate(audit.index_ids))
    attributed = (
        (audit_id, each.output_id, each.example_id, each.side, each.rank, each.score) for each in attributions
    )
    influential = ((audit_id, each.side, each.example_id, each.rank, each.share) for each in influences)
    contributed = (
        (audit_id, position, each.output_id, each.side, each.group, each.share)
        for position, each in enumerate(group_contributions)
    )
    return [
        _header_row(audit, method_notes),
        rows_of("audit_index", indexes),
        _output_rows(audit, results),
        rows_of("attribution", attributed),
        _share_rows(audit_id, shares),
        rows_of("example_influence", influential),
        _finding_rows(audit_id, findings),
        rows_of("group_contribution", contributed),
    ]


def _header_row(audit: Audit, method_notes: Mapping[str, Any]) -> Rows:
    header = (
        audit.audit_id,
        audit.model_version_id,
        audit.method,
        json_text(audit.parameters, "parameters"),
        audit.weighting_id,
        audit.policy_sha256,
        json_text(method_notes, "method_notes"),
    )
    return rows_of("audit", [header])


def _output_rows(audit: Audit, results: Sequence[OutputResult]) -> Rows:
    by_output = {result.output_id: result for result in results}
    return rows_of(
        "audit_output",
        (
            (
                audit.audit_id,
                output_id,
                position,
                target,
                by_output[output_id].prediction,
                by_output[output_id].loss,
                by_output[output_id].reproduced,
                by_output[output_id].proponent_mass,
                by_output[output_id].opponent_mass,
            )
            for position, (output_id, target) in enumerate(audit.outputs)
        ),
    )


def _share_rows(audit_id: str, shares: Sequence[Share]) -> Rows:
    ordered = sorted(shares, key=lambda each: (each.output_id or "", each.side, each.attribute, each.value))
    return rows_of(
        "share",
        (
            (
                audit_id,
                position,
                each.output_id,
                each.side,
                each.attribute,
                each.value,
                each.share,
                each.training_share,
                each.interval_low,
                each.interval_high,
            )
            for position, each in enumerate(ordered)
        ),
    )


def _finding_rows(audit_id: str, findings: Sequence[Finding]) -> Rows:
    return rows_of(
        "finding",
        (
            (
                audit_id,
                position,
                each.rule,
                each.severity,
                each.message,
                each.output_id,
                json_text(each.evidence, "evidence"),
            )
            for position, each in enumerate(findings)
        ),
    )


def _refuse_strangers(
    audit: Audit,
    results: Sequence[OutputResult],
    attributions: Sequence[Attribution],
    evidence: Sequence[Share | Finding | GroupContribution],
) -> None:
    expected = [output_id for output_id, _ in audit.outputs]
    if sorted(expected) != sorted(result.output_id for result in results) or not expected:
        raise DataError(
            f"Audit {audit.audit_id} has {len(expected)} outputs, and its results are not one for each of them.",
            "Score every output of the audit exactly once.",
        )
    known = set(expected)
    named = {each.output_id for each in attributions}
    named |= {each.output_id for each in evidence if each.output_id is not None}
    if strangers := sorted(named - known):
        raise DataError(
            f"Audit {audit.audit_id} was given evidence about output {strangers[0]}, which it does not examine.",
            "Hand over evidence about the audit's own outputs only.",
        )
    for each in attributions:
        if (each.score < 0) if each.side == "proponent" else (each.score > 0):
            raise DataError(
                f"Example {each.example_id} is a {each.side} of output {each.output_id} with score {each.score}.",
                "A proponent's score is positive, an opponent's negative.",
            )


def _refuse_partial_contributions(audit_id: str, contributions: Sequence[GroupContribution]) -> None:
    totals: dict[tuple[str | None, str], float] = {}
    for each in contributions:
        totals[each.output_id, each.side] = totals.get((each.output_id, each.side), 0.0) + each.share
    for (output_id, side), total in totals.items():
        if not isclose(total, 1.0, abs_tol=_CONTRIBUTION_TOLERANCE):
            raise DataError(
                f"The groups of audit {audit_id} contribute {total} of the {side}s' scores of "
                f"{output_id or 'all outputs'}, where all of them make 1.",
                "Hand over the contribution of every group of the index.",
            )
