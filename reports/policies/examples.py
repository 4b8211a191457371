"""Rules about single examples: withdrawn, of unknown origin, too strong, copies of the output."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from gradtrail.nouns import Finding
from gradtrail.reports.formats import percent, plural
from gradtrail.reports.policies.facts import Likeness, PolicyFacts, RankedExample
from gradtrail.reports.policies.registry import FRACTION, OF_BOTH, TOP, Option, Rule, finding, listed, policy_rule


@policy_rule(limit=FRACTION, near_copies=Option("number", 0.0, low=0, high=1), **OF_BOTH)
def one_example_dominates(rule: Rule, facts: PolicyFacts) -> Iterator[Finding]:
    """One example, or one with its near-copies, carries too much of an output's support."""
    limit, near = rule.options["limit"], rule.options["near_copies"]
    for output_id, proponents in facts.proponents.items():
        pairs = facts.likeness.get(output_id, Likeness()).pairs
        alike = _alike(proponents, [pair for pair in pairs if near and pair[2] >= near])
        strongest = max(alike, key=lambda group: sum(example.share for example in group), default=None)
        if strongest is None or (share := sum(example.share for example in strongest)) <= limit:
            continue
        first, copies = strongest[0], len(strongest) - 1
        whom = f"One training example, {first.example_id}, carries"
        if copies:
            near_copies = plural(copies, "near-copy", "near-copies")
            whom = f"One training example, {first.example_id}, and {near_copies} of it carry"
        yield finding(
            rule,
            f"{whom} {percent(share)} of all support for this output. The limit is {percent(limit)}.",
            output_id,
            example_id=first.example_id,
            example_ids=[example.example_id for example in strongest],
            share=share,
            limit=limit,
        )


@policy_rule(cosine=Option("number", 0.999, low=0, high=1), top=TOP, **OF_BOTH)
def copies_of_output(rule: Rule, facts: PolicyFacts) -> Iterator[Finding]:
    """What the model was shown, or nearly so, is among the examples that support its output most."""
    limit = rule.options["cosine"]
    for output_id, proponents in facts.proponents.items():
        likeness = facts.likeness.get(output_id, Likeness())
        top = [example for example in proponents if example.rank <= rule.options["top"]]
        same = [example for example in top if example.example_id in likeness.same_inputs]
        near = [
            example
            for example in top
            if example not in same and likeness.to_output.get(example.example_id, 0.0) >= limit
        ]
        if not same and not near:
            continue
        parts = []
        if same:
            parts.append(f"has exactly the input of this output: {listed(_named(same))}")
        if near:
            parts.append(
                f"is nearly the same example (gradients with a cosine of {limit:g} or more): {listed(_named(near))}"
            )
        yield finding(
            rule,
            f"Training data {'; and other data '.join(parts)}. The model may repeat what it was trained on, or the "
            "output was asked for with data that leaked into the training set.",
            output_id,
            example_ids=[example.example_id for example in (*same, *near)],
            same_inputs=[example.example_id for example in same],
            cosines={
                example.example_id: round(likeness.to_output.get(example.example_id, 0.0), 6)
                for example in (*same, *near)
            },
            limit=limit,
        )


@policy_rule(
    attribute=Option("text", ""), values=Option("texts", ()), example_ids=Option("texts", ()), top=TOP, **OF_BOTH
)
def withdrawn_among_top(rule: Rule, facts: PolicyFacts) -> Iterator[Finding]:
    """Data that was withdrawn, by the ledger or by the rule itself, supports an output."""
    example_ids = facts.withdrawn_example_ids.union(rule.options["example_ids"])
    values = {attribute: set(withdrawn) for attribute, withdrawn in facts.withdrawn_values.items()}
    values.setdefault(rule.options["attribute"], set()).update(rule.options["values"])

    def is_withdrawn(example: RankedExample) -> bool:
        return example.example_id in example_ids or any(
            example.attributes.get(attribute) in withdrawn for attribute, withdrawn in values.items()
        )

    yield from _among_top(rule, facts, is_withdrawn, "withdrawn")


@policy_rule(attribute=Option("text"), values=Option("texts", ("unknown",)), top=TOP, **OF_BOTH)
def unknown_among_top(rule: Rule, facts: PolicyFacts) -> Iterator[Finding]:
    """Data whose attribute is missing, blank or said to be unknown supports an output."""
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
            yield finding(
                rule,
                f"{len(found)} of the {plural(len(top), 'training example')} that support this output most "
                f"{'is' if len(found) == 1 else 'are'} {description}: {listed(_named(found))}.",
                output_id,
                example_ids=[example.example_id for example in found],
                share=sum(example.share for example in found),
                top=rule.options["top"],
            )


def _named(examples: Sequence[RankedExample]) -> list[str]:
    return [f"{example.example_id} (rank {example.rank}, {percent(example.share)})" for example in examples]


def _alike(proponents: Sequence[RankedExample], pairs: Sequence[tuple[str, str, float]]) -> list[list[RankedExample]]:
    """Proponents in groups of near-copies, each in rank order; one is near every other over a chain of pairs."""
    group_of: Mapping[str, list[RankedExample]] = {example.example_id: [example] for example in proponents}
    groups = dict(group_of)
    for one, other, _ in pairs:
        if one in groups and other in groups and groups[one] is not groups[other]:
            joined = sorted([*groups[one], *groups[other]], key=lambda example: example.rank)
            groups.update({example.example_id: joined for example in joined})
    return list({id(group): group for group in groups.values()}.values())
