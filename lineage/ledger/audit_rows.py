"""From an audit and its evidence to rows; evidence that does not fit the audit is refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isclose
from typing import Any

from gradtrail.errors import DataError
from gradtrail.lineage.chain.rows import Rows, rows_from, rows_of
from gradtrail.lineage.schema.json_columns import as_json
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
    by_output = {result.output_id: result for result in results}
    ordered = sorted(shares, key=lambda each: (each.output_id or "", each.side, each.attribute, each.value))
    return [
        rows_from("audit", [audit], method_notes=method_notes),
        rows_of("audit_index", ((audit_id, position, index_id) for position, index_id in enumerate(audit.index_ids))),
        rows_from(
            "audit_output",
            [by_output[output_id] for output_id, _ in audit.outputs],
            audit_id=audit_id,
            each={"target": [target for _, target in audit.outputs]},
        ),
        rows_from("attribution", attributions, audit_id=audit_id),
        rows_from("share", ordered, audit_id=audit_id),
        rows_from("example_influence", influences, audit_id=audit_id),
        rows_from("finding", findings, audit_id=audit_id),
        rows_from("group_contribution", group_contributions, audit_id=audit_id, named={"group_name": "group"}),
    ]


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
