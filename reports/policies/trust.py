"""Rules about trust: what was reproduced, covered and measured, and which labels look wrong."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping

from gradtrail.nouns import Finding
from gradtrail.reports.formats import count, number, percent, plural
from gradtrail.reports.policies.facts import PolicyFacts
from gradtrail.reports.policies.registry import (
    FRACTION,
    OF_BOTH,
    OF_OUTPUTS,
    Option,
    Rule,
    finding,
    listed,
    policy_rule,
)


@policy_rule(**OF_OUTPUTS)
def not_reproduced(rule: Rule, facts: PolicyFacts) -> Iterator[Finding]:
    """The pinned checkpoint does not give the output again."""
    for result in facts.results:
        if result.reproduced is False:
            yield finding(
                rule,
                "The pinned checkpoint, asked again with the same input, answers something else. The attributions "
                "explain the recorded output as these weights see it; check which model version made it.",
                result.output_id,
            )


@policy_rule(of=Option("choice", choices=("parameters", "examples")), limit=FRACTION)
def coverage_below(rule: Rule, facts: PolicyFacts) -> Iterator[Finding]:
    """The scores speak for too little of the model or of its training data."""
    coverage, limit = facts.coverage, rule.options["limit"]
    if rule.options["of"] == "parameters":
        share, covered, total = coverage.parameter_share, coverage.covered_parameters, coverage.total_parameters
        message = "the model’s trainable parameters" if coverage.frozen else "the model’s parameters"
        missing = f" Not covered: {listed(coverage.left_out)}." if coverage.left_out else ""
    else:
        share, covered, total = coverage.example_share, coverage.indexed_examples, coverage.total_examples
        message, missing = "the training examples", f" {count(total - covered)} have no scores."
    if share < limit:
        yield finding(
            rule,
            f"The scores speak for {percent(share)} of {message} ({count(covered)} of {count(total)}). "
            f"The limit is {percent(limit)}.{missing}",
            of=rule.options["of"],
            share=share,
            limit=limit,
        )


@policy_rule(limit=Option("number", low=-1, high=1))
def fidelity_below(rule: Rule, facts: PolicyFacts) -> Iterator[Finding]:
    """The scores were measured to predict too little, or not measured at all."""
    fidelity, limit = facts.fidelity, rule.options["limit"]
    if fidelity is None:
        message = (
            "Fidelity has not been measured for this checkpoint, so how well the scores predict what training on the "
            "examples does is not known."
        )
        yield Finding(rule.name, "info", message, None, {"kind": rule.kind, "measured": False, "limit": limit})
    elif fidelity.not_measured_because:
        message = (
            f"Fidelity could not be measured on this checkpoint: {fidelity.not_measured_because}. So how well the "
            "scores predict what training on the examples does is not known."
        )
        yield Finding(rule.name, "info", message, None, {"kind": rule.kind, "measured": False, "limit": limit})
    elif fidelity.value < limit:
        yield finding(
            rule,
            f"Measured fidelity on this checkpoint is {number(fidelity.value)} ± {number(fidelity.standard_error)} "
            f"({fidelity.metric}, {plural(fidelity.queries, 'output')}); the limit is {number(limit)}. "
            "Treat the scores as indicative only.",
            measured=True,
            value=fidelity.value,
            standard_error=fidelity.standard_error,
            limit=limit,
        )


@policy_rule(
    limit=Option("number", low=0),
    measure=Option("choice", "opposition", choices=("opposition", "self_influence", "other_label")),
    attribute=Option("text", "label"),
    **OF_BOTH,
)
def suspect_labels(rule: Rule, facts: PolicyFacts) -> Iterator[Finding]:
    """Examples that behave as wrongly labelled ones do, by one of three measures."""
    yield from _LABEL_MEASURES[rule.options["measure"]](rule, facts)


def _by_opposition(rule: Rule, facts: PolicyFacts) -> Iterator[Finding]:
    if not facts.coverage.indexed_examples:
        return
    threshold = rule.options["limit"] / facts.coverage.indexed_examples
    suspects = [suspect for suspect in facts.suspects if suspect.side == "opponent" and suspect.share > threshold]
    if suspects:
        suspects.sort(key=lambda suspect: (-suspect.share, suspect.example_id))
        named = [f"{suspect.example_id} ({percent(suspect.share)})" for suspect in suspects]
        yield finding(
            rule,
            f"{plural(len(suspects), 'training example')} {'works' if len(suspects) == 1 else 'work'} against many "
            f"outputs at once, with more than {rule.options['limit']:g} times the average share of the opposition. "
            f"Wrong labels do this: look at {listed(named)}.",
            measure="opposition",
            example_ids=[suspect.example_id for suspect in suspects],
            shares=[suspect.share for suspect in suspects],
            limit=rule.options["limit"],
        )


def _by_self_influence(rule: Rule, facts: PolicyFacts) -> Iterator[Finding]:
    suspects = [each for each in facts.self_influences if each[1] > rule.options["limit"]]
    if suspects:
        yield finding(
            rule,
            f"The model had to learn {plural(len(suspects), 'training example')} by heart: what it knows of the others "
            f"speaks against them (self-influence of more than {rule.options['limit']:g} times the mean). Wrong labels "
            f"do this: look at {listed([f'{name} ({multiple:.1f}×)' for name, multiple in suspects])}.",
            measure="self_influence",
            example_ids=[name for name, _ in suspects],
            multiples=[multiple for _, multiple in suspects],
            limit=rule.options["limit"],
        )


def _by_other_label(rule: Rule, facts: PolicyFacts) -> Iterator[Finding]:
    attribute, limit = rule.options["attribute"], rule.options["limit"]
    said = {result.output_id: result.prediction for result in facts.results}
    opposed: dict[str, list[tuple[str, float, str]]] = defaultdict(list)
    for output_id, opponents in facts.opponents.items():
        for example in opponents:
            label = example.attributes.get(attribute)
            if label is not None and label != said[output_id] and example.share > limit:
                opposed[example.example_id].append((output_id, example.share, label))
    if opposed:
        ranked = sorted(opposed, key=lambda name: (-len(opposed[name]), -max(each[1] for each in opposed[name]), name))
        named = [
            f"{name} ({attribute} “{opposed[name][0][2]}”, up to {percent(max(each[1] for each in opposed[name]))})"
            for name in ranked
        ]
        yield finding(
            rule,
            f"{plural(len(opposed), 'training example')} with another {attribute} than the output "
            f"{'carries' if len(opposed) == 1 else 'carry'} more than {percent(limit)} of the opposition to it. "
            f"Examples that look alike and have another {attribute} do this: look at {listed(named)}.",
            measure="other_label",
            attribute=attribute,
            example_ids=ranked,
            output_ids=sorted({each[0] for found in opposed.values() for each in found}),
            limit=limit,
        )


_LABEL_MEASURES: Mapping[str, Callable[[Rule, PolicyFacts], Iterator[Finding]]] = {
    "opposition": _by_opposition,
    "self_influence": _by_self_influence,
    "other_label": _by_other_label,
}
