"""Policies: the rules an audit is held to, and the findings they produce in plain language."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

from gradtrail.nouns import SEVERITIES, Finding
from gradtrail.reports.policies.examples import (
    copies_of_output,
    one_example_dominates,
    unknown_among_top,
    withdrawn_among_top,
)
from gradtrail.reports.policies.facts import EarlierAudit, Likeness, PolicyFacts, RankedExample, facts_for
from gradtrail.reports.policies.file import DEFAULT_POLICY, RULE_KINDS, Policy, Rule, load_policy
from gradtrail.reports.policies.shares import share_above, share_drift
from gradtrail.reports.policies.trust import coverage_below, fidelity_below, not_reproduced, suspect_labels

__all__ = [
    "DEFAULT_POLICY",
    "RULE_KINDS",
    "EarlierAudit",
    "Likeness",
    "Policy",
    "PolicyFacts",
    "RankedExample",
    "Rule",
    "evaluate",
    "load_policy",
]

_TESTS: Mapping[str, Callable[[Rule, PolicyFacts], Iterator[Finding]]] = {
    "share_above": share_above,
    "share_drift": share_drift,
    "one_example_dominates": one_example_dominates,
    "copies_of_output": copies_of_output,
    "withdrawn_among_top": withdrawn_among_top,
    "unknown_among_top": unknown_among_top,
    "not_reproduced": not_reproduced,
    "coverage_below": coverage_below,
    "fidelity_below": fidelity_below,
    "suspect_labels": suspect_labels,
}


def evaluate(policy: Policy, facts: PolicyFacts) -> list[Finding]:
    """All findings of a policy, the most severe first, then by rule, output and message.

    The evidence of each finding names the `kind` of its rule, its slice, and the figures or ids it rests on.
    """
    findings = [finding for rule in policy.rules for finding in _of_rule(rule, facts)]
    return sorted(
        findings,
        key=lambda finding: (
            SEVERITIES.index(finding.severity),
            finding.rule,
            finding.output_id or "",
            finding.message,
        ),
    )


def _of_rule(rule: Rule, facts: PolicyFacts) -> Iterator[Finding]:
    slices = {name: dict(rule.options[name]) for name in ("only_outputs", "only_examples") if rule.options.get(name)}
    for finding in _TESTS[rule.kind](rule, facts_for(facts, rule.options)):
        if not slices:
            yield finding
            continue
        whom = " and ".join(
            f"{name.removeprefix('only_')} with {' and '.join(f'{key} “{value}”' for key, value in wanted.items())}"
            for name, wanted in slices.items()
        )
        message = f"Among {whom}: {finding.message[0].lower()}{finding.message[1:]}"
        yield replace(finding, message=message, evidence={**finding.evidence, **slices})
