"""What rules can test: the facts of one audit, and the part of them that a rule restricted to a slice may see."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from gradtrail.nouns import Coverage, ExampleInfluence, Fidelity, OutputResult, Share


@dataclass(frozen=True)
class RankedExample:
    """A kept example of one output: its rank from 1, its share of that side's mass, its attributes."""

    example_id: str
    rank: int
    share: float
    attributes: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Likeness:
    """How alike one output and its proponents are.

    `same_inputs` have, byte for byte, the inputs of the output. `to_output` is the cosine of the gradients of output
    and proponent by example id; `pairs` those of two proponents, where a rule asks for as much.
    """

    same_inputs: frozenset[str] = frozenset()
    to_output: Mapping[str, float] = field(default_factory=dict)
    pairs: tuple[tuple[str, str, float], ...] = ()


@dataclass(frozen=True)
class EarlierAudit:
    """An audit of the same model and target that was recorded before, with its shares over all its outputs."""

    audit_id: str
    shares: tuple[Share, ...]


@dataclass(frozen=True)
class PolicyFacts:
    """What an audit found, as far as rules can test it.

    `shares` holds those of the audit (output_id None) and of single outputs. `proponents` and `opponents` are by output
    id, in rank order. `withdrawn_values` are attribute values by attribute, `withdrawn_example_ids` single examples.
    `suspects` are examples with their mean opponent share; `self_influences` are the largest, as multiples of the mean
    over all examples; a rule picks those above its limit. `attributes` are by example id, for `suspects` and
    `self_influences`. `earlier` has the newest audit first. `output_sources` says where each output came from.
    """

    results: tuple[OutputResult, ...]
    shares: tuple[Share, ...]
    proponents: Mapping[str, tuple[RankedExample, ...]]
    coverage: Coverage
    fidelity: Fidelity | None = None
    withdrawn_values: Mapping[str, frozenset[str]] = field(default_factory=dict)
    withdrawn_example_ids: frozenset[str] = frozenset()
    suspects: tuple[ExampleInfluence, ...] = ()
    opponents: Mapping[str, tuple[RankedExample, ...]] = field(default_factory=dict)
    likeness: Mapping[str, Likeness] = field(default_factory=dict)
    earlier: tuple[EarlierAudit, ...] = ()
    self_influences: tuple[tuple[str, float], ...] = ()
    attributes: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    output_sources: Mapping[str, str] = field(default_factory=dict)


def facts_for(facts: PolicyFacts, options: Mapping[str, Any]) -> PolicyFacts:
    """The facts that a rule sees: all, or those of the outputs and examples that its slice names.

    The shares of an audit become the mean over the outputs that are left; shares of single examples stay parts of the
    whole support, so that they do not grow because others are looked away from.
    """
    if options.get("only_outputs"):
        facts = _of_outputs(facts, options["only_outputs"])
    if options.get("only_examples"):
        facts = _of_examples(facts, options["only_examples"])
    return facts


def _of_outputs(facts: PolicyFacts, wanted: Mapping[str, str]) -> PolicyFacts:
    def is_wanted(result: OutputResult) -> bool:
        known = {"prediction": result.prediction, "source": facts.output_sources.get(result.output_id, "")}
        return all(known[name] == value for name, value in wanted.items())

    results = tuple(result for result in facts.results if is_wanted(result))
    kept = {result.output_id for result in results}
    single = tuple(share for share in facts.shares if share.output_id in kept)
    return replace(
        facts,
        results=results,
        shares=(*_mean_shares(single, len(kept)), *single),
        proponents={output_id: ranked for output_id, ranked in facts.proponents.items() if output_id in kept},
        opponents={output_id: ranked for output_id, ranked in facts.opponents.items() if output_id in kept},
    )


def _mean_shares(shares: tuple[Share, ...], outputs: int) -> list[Share]:
    found: dict[tuple[str, str, str], list[Share]] = defaultdict(list)
    for share in shares:
        found[share.side, share.attribute, share.value].append(share)
    return [
        replace(same[0], output_id=None, share=sum(share.share for share in same) / outputs) for same in found.values()
    ]


def _of_examples(facts: PolicyFacts, wanted: Mapping[str, str]) -> PolicyFacts:
    def is_wanted(attributes: Mapping[str, str]) -> bool:
        return all(attributes.get(name) == value for name, value in wanted.items())

    def of_side(side: Mapping[str, tuple[RankedExample, ...]]) -> dict[str, tuple[RankedExample, ...]]:
        return {
            output_id: tuple(example for example in ranked if is_wanted(example.attributes))
            for output_id, ranked in side.items()
        }

    def known(example_id: str) -> bool:
        return is_wanted(facts.attributes.get(example_id, {}))

    return replace(
        facts,
        proponents=of_side(facts.proponents),
        opponents=of_side(facts.opponents),
        suspects=tuple(suspect for suspect in facts.suspects if known(suspect.example_id)),
        self_influences=tuple(each for each in facts.self_influences if known(each[0])),
    )
