"""What a policy may test, gathered from what an audit found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from gradtrail.lineage.withdrawals import Withdrawn
from gradtrail.nouns import Attribution, Coverage, ExampleInfluence, Fidelity, OutputResult, Share
from gradtrail.reports.policies import PolicyFacts, RankedExample


def policy_facts(
    results: Sequence[OutputResult],
    attributions: Sequence[Attribution],
    shares: Sequence[Share],
    influences: Sequence[ExampleInfluence],
    attributes: Mapping[str, Mapping[str, str]],
    coverage: Coverage,
    fidelity: Fidelity | None = None,
    withdrawn: Withdrawn | None = None,
) -> PolicyFacts:
    """Facts of one audit; `attributes` are by example id, for every example that is named.

    `withdrawn` is what the ledger says was withdrawn; the policy file may name more.
    """
    mass = {result.output_id: result.proponent_mass for result in results}
    proponents: dict[str, list[RankedExample]] = {result.output_id: [] for result in results}
    for found in sorted(attributions, key=lambda a: (a.output_id, a.rank)):
        if found.side == "proponent":
            proponents[found.output_id].append(
                RankedExample(
                    found.example_id, found.rank, found.score / mass[found.output_id], attributes[found.example_id]
                )
            )
    return PolicyFacts(
        results=tuple(results),
        shares=tuple(shares),
        proponents={output_id: tuple(ranked) for output_id, ranked in proponents.items()},
        coverage=coverage,
        fidelity=fidelity,
        withdrawn_values=withdrawn.values if withdrawn else {},
        withdrawn_example_ids=withdrawn.example_ids if withdrawn else frozenset(),
        suspects=tuple(influence for influence in influences if influence.side == "opponent"),
    )
