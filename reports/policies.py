"""Policies: the rules an audit is held to, and the findings they produce in plain language."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from gradtrail.nouns import SEVERITIES, Coverage, ExampleInfluence, Fidelity, Finding, OutputResult, Share
from gradtrail.reports.formats import count, number, percent, plural, ratio
from gradtrail.reports.policy_file import DEFAULT_POLICY, RULE_KINDS, Policy, Rule, load_policy

__all__ = [
    "DEFAULT_POLICY",
    "RULE_KINDS",
    "Policy",
    "PolicyFacts",
    "RankedExample",
    "Rule",
    "evaluate",
    "load_policy",
]

_NAMED_IN_MESSAGE = 3


@dataclass(frozen=True)
class RankedExample:
    """A proponent of one output: its rank from 1, its share of the proponent mass, its attributes."""

    example_id: str
    rank: int
    share: float
    attributes: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class PolicyFacts:
    """What an audit found, as far as rules can test it.

    `shares` holds those of the audit (output_id None) and of single outputs. `proponents` are by output id, in rank
    order. `withdrawn_values` are attribute values by attribute, `withdrawn_example_ids` single examples. `suspects` are
    examples with their mean opponent share; a rule picks those above its limit.
    """

    results: tuple[OutputResult, ...]
    shares: tuple[Share, ...]
    proponents: Mapping[str, tuple[RankedExample, ...]]
    coverage: Coverage
    fidelity: Fidelity | None = None
    withdrawn_values: Mapping[str, frozenset[str]] = field(default_factory=dict)
    withdrawn_example_ids: frozenset[str] = frozenset()
    suspects: tuple[ExampleInfluence, ...] = ()


def evaluate(policy: Policy, facts: PolicyFacts) -> list[Finding]:
    """All findings of a policy, the most severe first, then by rule, output and message.

    The evidence of each finding names the `kind` of its rule and the figures or ids it rests on.
    """
    findings = [finding for rule in policy.rules for finding in _TESTS[rule.kind](rule, facts)]
    return sorted(
        findings,
        key=lambda finding: (
            SEVERITIES.index(finding.severity),
            finding.rule,
            finding.output_id or "",
            finding.message,
        ),
    )


def _finding(rule: Rule, message: str, output_id: str | None = None, **evidence: Any) -> Finding:
    return Finding(rule.name, rule.severity, message, output_id, {"kind": rule.kind, **evidence})


def _share_above(rule: Rule, facts: PolicyFacts) -> Iterator[Finding]:
    options = rule.options
    for share in facts.shares:
        wanted = share.attribute == options["attribute"] and options["value"] in ("*", share.value)
        in_scope = (share.output_id is None) == (options["scope"] == "overall")
        if wanted and in_scope and share.side == options["side"] and _is_above(share, options):
            yield _finding(
                rule,
                _share_message(share, options),
                share.output_id,
                attribute=share.attribute,
                value=share.value,
                side=share.side,
                measure=options["measure"],
                limit=options["limit"],
                share=share.share,
                training_share=share.training_share,
                ratio=share.ratio,
            )


def _is_above(share: Share, options: Mapping[str, Any]) -> bool:
    limit: float = options["limit"]
    if options["measure"] == "share":
        return share.share > limit
    if options["measure"] == "ratio":
        return share.ratio > limit
    return share.interval_high is not None and share.share > share.interval_high and share.ratio > limit


def _share_message(share: Share, options: Mapping[str, Any]) -> str:
    whose = f"{share.attribute} “{share.value}”" if share.value else f"no {share.attribute}"
    what = "support for" if share.side == "proponent" else "opposition to"
    whom = "the audited outputs" if share.output_id is None else "this output"
    message = (
        f"Training examples with {whose} carry {percent(share.share)} of the {what} {whom} "
        f"and make up {percent(share.training_share)} of the training set"
    )
    if options["measure"] == "share":
        return f"{message}. The limit is {percent(options['limit'])}."
    message = f"{message}: {ratio(share.ratio)} what their number explains"
    if share.interval_low is not None and share.interval_high is not None:
        message = f"{message}, where chance alone gives {percent(share.interval_low)} to {percent(share.interval_high)}"
    return f"{message}. The limit is {options['limit']:g}×."


def _one_example_dominates(rule: Rule, facts: PolicyFacts) -> Iterator[Finding]:
    for output_id, proponents in facts.proponents.items():
        strongest = max(proponents, key=lambda example: example.share, default=None)
        if strongest is not None and strongest.share > rule.options["limit"]:
            yield _finding(
                rule,
                f"One training example, {strongest.example_id}, carries {percent(strongest.share)} of all support for "
                f"this output. The limit is {percent(rule.options['limit'])}.",
                output_id,
                example_id=strongest.example_id,
                share=strongest.share,
                limit=rule.options["limit"],
            )


def _withdrawn_among_top(rule: Rule, facts: PolicyFacts) -> Iterator[Finding]:
    example_ids = facts.withdrawn_example_ids.union(rule.options["example_ids"])
    values = {attribute: set(withdrawn) for attribute, withdrawn in facts.withdrawn_values.items()}
    values.setdefault(rule.options["attribute"], set()).update(rule.options["values"])

    def is_withdrawn(example: RankedExample) -> bool:
        return example.example_id in example_ids or any(
            example.attributes.get(attribute) in withdrawn for attribute, withdrawn in values.items()
        )

    yield from _among_top(rule, facts, is_withdrawn, "withdrawn")


def _unknown_among_top(rule: Rule, facts: PolicyFacts) -> Iterator[Finding]:
    attribute = rule.options["attribute"]
    unknown = {"", *(value.casefold() for value in rule.options["values"])}

    def is_unknown(example: RankedExample) -> bool:
        return example.attributes.get(attribute, "").strip().casefold() in unknown

    yield from _among_top(rule, facts, is_unknown, f"of unknown {attribute}")


def _among_top(
    rule: Rule, facts: PolicyFacts, concerns: Callable[[RankedExample], bool], description: str
) -> Iterator[Finding]:
    for output_id, proponents in facts.proponents.items():
        top = [example for example in proponents if example.rank <= rule.options["top"]]
        found = [example for example in top if concerns(example)]
        if found:
            named = [f"{example.example_id} (rank {example.rank}, {percent(example.share)})" for example in found]
            yield _finding(
                rule,
                f"{len(found)} of the {plural(len(top), 'training example')} that support this output most "
                f"{'is' if len(found) == 1 else 'are'} {description}: {_listed(named)}.",
                output_id,
                example_ids=[example.example_id for example in found],
                share=sum(example.share for example in found),
                top=rule.options["top"],
            )


def _not_reproduced(rule: Rule, facts: PolicyFacts) -> Iterator[Finding]:
    for result in facts.results:
        if not result.reproduced:
            yield _finding(
                rule,
                "The pinned checkpoint, asked again with the same input, answers something else. The attributions "
                "explain the recorded output as these weights see it; check which model version made it.",
                result.output_id,
            )


def _coverage_below(rule: Rule, facts: PolicyFacts) -> Iterator[Finding]:
    coverage, limit = facts.coverage, rule.options["limit"]
    if rule.options["of"] == "parameters":
        share, covered, total = coverage.parameter_share, coverage.covered_parameters, coverage.total_parameters
        message = "the model’s parameters"
        missing = f" Not covered: {_listed(coverage.uncovered)}." if coverage.uncovered else ""
    else:
        share, covered, total = coverage.example_share, coverage.indexed_examples, coverage.total_examples
        message, missing = "the training examples", f" {count(total - covered)} have no scores."
    if share < limit:
        yield _finding(
            rule,
            f"The scores speak for {percent(share)} of {message} ({count(covered)} of {count(total)}). "
            f"The limit is {percent(limit)}.{missing}",
            of=rule.options["of"],
            share=share,
            limit=limit,
        )


def _fidelity_below(rule: Rule, facts: PolicyFacts) -> Iterator[Finding]:
    fidelity, limit = facts.fidelity, rule.options["limit"]
    if fidelity is None:
        message = (
            "Fidelity has not been measured for this checkpoint, so how well the scores predict what training on the "
            "examples does is not known."
        )
        yield Finding(rule.name, "info", message, None, {"kind": rule.kind, "measured": False, "limit": limit})
    elif fidelity.value < limit:
        yield _finding(
            rule,
            f"Measured fidelity on this checkpoint is {number(fidelity.value)} ± {number(fidelity.standard_error)} "
            f"({fidelity.metric}, {plural(fidelity.queries, 'output')}); the limit is {number(limit)}. "
            "Treat the scores as indicative only.",
            measured=True,
            value=fidelity.value,
            standard_error=fidelity.standard_error,
            limit=limit,
        )


def _suspect_labels(rule: Rule, facts: PolicyFacts) -> Iterator[Finding]:
    if not facts.coverage.indexed_examples:
        return
    threshold = rule.options["limit"] / facts.coverage.indexed_examples
    suspects = [suspect for suspect in facts.suspects if suspect.side == "opponent" and suspect.share > threshold]
    if suspects:
        suspects.sort(key=lambda suspect: (-suspect.share, suspect.example_id))
        named = [f"{suspect.example_id} ({percent(suspect.share)})" for suspect in suspects]
        yield _finding(
            rule,
            f"{plural(len(suspects), 'training example')} {'works' if len(suspects) == 1 else 'work'} against many "
            f"outputs at once, with more than {rule.options['limit']:g} times the average share of the opposition. "
            f"Wrong labels do this: look at {_listed(named)}.",
            example_ids=[suspect.example_id for suspect in suspects],
            shares=[suspect.share for suspect in suspects],
            limit=rule.options["limit"],
        )


def _listed(names: list[str] | tuple[str, ...]) -> str:
    rest = len(names) - _NAMED_IN_MESSAGE
    return ", ".join(names[:_NAMED_IN_MESSAGE]) + (f" and {count(rest)} more" if rest > 0 else "")


_TESTS: Mapping[str, Callable[[Rule, PolicyFacts], Iterator[Finding]]] = {
    "share_above": _share_above,
    "one_example_dominates": _one_example_dominates,
    "withdrawn_among_top": _withdrawn_among_top,
    "unknown_among_top": _unknown_among_top,
    "not_reproduced": _not_reproduced,
    "coverage_below": _coverage_below,
    "fidelity_below": _fidelity_below,
    "suspect_labels": _suspect_labels,
}
