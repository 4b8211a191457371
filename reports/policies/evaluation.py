"""Policies: the rules an audit is held to, and the findings they produce in plain language."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from gradtrail.nouns import SEVERITIES, Finding
from gradtrail.reports.policies.facts import PolicyFacts, facts_for
from gradtrail.reports.policies.file import Policy
from gradtrail.reports.policies.registry import RULES, Rule


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
    for finding in RULES[rule.kind].test(rule, facts_for(facts, rule.options)):
        if not slices:
            yield finding
            continue
        whom = " and ".join(
            f"{name.removeprefix('only_')} with {' and '.join(f'{key} “{value}”' for key, value in wanted.items())}"
            for name, wanted in slices.items()
        )
        message = f"Among {whom}: {finding.message[0].lower()}{finding.message[1:]}"
        yield replace(finding, message=message, evidence={**finding.evidence, **slices})
