"""What a policy may test, gathered from what an audit found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from gradtrail.lineage.events.withdrawals import Withdrawn
from gradtrail.nouns import Attribution, Coverage, ExampleInfluence, Fidelity, OutputResult, Share, Side
from gradtrail.reports.policies.facts import PolicyFacts, RankedExample
from gradtrail.tasks.audit.beyond_audit import BeyondAudit


def policy_facts(
    results: Sequence[OutputResult],
    attributions: Sequence[Attribution],
    shares: Sequence[Share],
    influences: Sequence[ExampleInfluence],
    attributes: Mapping[str, Mapping[str, str]],
    coverage: Coverage,
    fidelity: Fidelity | None = None,
    withdrawn: Withdrawn | None = None,
    beyond: BeyondAudit | None = None,
) -> PolicyFacts:
    """Facts of one audit; `attributes` are by example id, for every example that is named.

    `withdrawn` is what the ledger says was withdrawn; the policy file may name more.
    """
    beyond = beyond or BeyondAudit()
    ranked = _ranked(results, attributions, attributes)
    return PolicyFacts(
        results=tuple(results),
        shares=tuple(shares),
        proponents=ranked["proponent"],
        coverage=coverage,
        fidelity=fidelity,
        withdrawn_values=withdrawn.values if withdrawn else {},
        withdrawn_example_ids=withdrawn.example_ids if withdrawn else frozenset(),
        suspects=tuple(influence for influence in influences if influence.side == "opponent"),
        opponents=ranked["opponent"],
        likeness=beyond.likeness,
        earlier=beyond.earlier,
        self_influences=beyond.self_influences,
        attributes=attributes,
        output_sources=beyond.output_sources,
    )


def _ranked(
    results: Sequence[OutputResult], attributions: Sequence[Attribution], attributes: Mapping[str, Mapping[str, str]]
) -> dict[Side, dict[str, tuple[RankedExample, ...]]]:
    """The kept examples of each side and output, by rank, with their share of the output's mass on that side."""
    mass: dict[Side, dict[str, float]] = {
        "proponent": {each.output_id: each.proponent_mass for each in results},
        "opponent": {each.output_id: each.opponent_mass for each in results},
    }
    ranked: dict[Side, dict[str, list[RankedExample]]] = {side: {name: [] for name in of} for side, of in mass.items()}
    for each in attributions:
        share = abs(each.score / mass[each.side][each.output_id])
        own = RankedExample(each.example_id, each.rank, share, attributes[each.example_id])
        ranked[each.side][each.output_id].append(own)
    return {
        side: {name: tuple(sorted(examples, key=_rank)) for name, examples in of.items()} for side, of in ranked.items()
    }


def _rank(example: RankedExample) -> int:
    return example.rank
