"""What a policy may test, gathered from what an audit found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from gradtrail.lineage.events.withdrawals import Withdrawn
from gradtrail.nouns import Attribution, Coverage, ExampleInfluence, Fidelity, OutputResult, Share, Side
from gradtrail.reports.policies.evaluation import PolicyFacts, RankedExample
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
    return PolicyFacts(
        results=tuple(results),
        shares=tuple(shares),
        proponents=_ranked("proponent", results, attributions, attributes),
        coverage=coverage,
        fidelity=fidelity,
        withdrawn_values=withdrawn.values if withdrawn else {},
        withdrawn_example_ids=withdrawn.example_ids if withdrawn else frozenset(),
        suspects=tuple(influence for influence in influences if influence.side == "opponent"),
        opponents=_ranked("opponent", results, attributions, attributes),
        likeness=beyond.likeness,
        earlier=beyond.earlier,
        self_influences=beyond.self_influences,
        attributes=attributes,
        output_sources=beyond.output_sources,
    )


def _ranked(
    side: Side,
    results: Sequence[OutputResult],
    attributions: Sequence[Attribution],
    attributes: Mapping[str, Mapping[str, str]],
) -> dict[str, tuple[RankedExample, ...]]:
    mass = {r.output_id: r.proponent_mass if side == "proponent" else r.opponent_mass for r in results}
    ranked: dict[str, list[RankedExample]] = {result.output_id: [] for result in results}
    for found in sorted(attributions, key=lambda a: (a.output_id, a.rank)):
        if found.side == side:
            share = abs(found.score / mass[found.output_id])
            ranked[found.output_id].append(
                RankedExample(found.example_id, found.rank, share, attributes[found.example_id])
            )
    return {output_id: tuple(examples) for output_id, examples in ranked.items()}
