"""What a pass over an index found, as the nouns that the ledger records."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gradtrail.attribution.scoring.passes import Ranked, overall_of_pass, score_pass, shares
from gradtrail.nouns import Attribution, ExampleInfluence, OutputResult, Share, Side
from gradtrail.tasks.audit.preparing import PreparedAudit
from gradtrail.tasks.core.measured_outputs import MeasuredOutput

OVERALL_TOP = 50
PERMUTATIONS = 200


@dataclass(frozen=True)
class Scored:
    """Results of the outputs, the kept attributions, the strongest examples over all outputs, and the shares."""

    results: tuple[OutputResult, ...]
    attributions: tuple[Attribution, ...]
    influences: tuple[ExampleInfluence, ...]
    shares: tuple[Share, ...]

    @property
    def example_ids(self) -> set[str]:
        """Every example that is named."""
        return {each.example_id for each in self.attributions} | {each.example_id for each in self.influences}


def score_prepared(prepared: PreparedAudit, measured: Sequence[MeasuredOutput], top_k: int) -> Scored:
    """Score every training example against the prepared outputs; `top_k` examples a side are kept for each."""
    query_rows = prepared.queries
    result = score_pass(prepared.scoring, top_k=top_k)
    overall = overall_of_pass(prepared.scoring, result, top_k=OVERALL_TOP, permutations=PERMUTATIONS)
    by_id = {each.output_id: each for each in measured}
    results = tuple(
        OutputResult(
            output_id=output_id,
            prediction=by_id[output_id].prediction,
            loss=float(query_rows.losses[place]),
            reproduced=by_id[output_id].reproduced,
            proponent_mass=float(result.positive_mass[place]),
            opponent_mass=float(result.negative_mass[place]),
        )
        for place, output_id in enumerate(query_rows.example_ids)
    )
    attributions = tuple(
        Attribution(output_id, example_id, side, rank, value)
        for place, output_id in enumerate(query_rows.example_ids)
        for side, ranked in _sides(result.proponents[place], result.opponents[place])
        for rank, (example_id, value) in enumerate(ranked, start=1)
    )
    influences = tuple(
        ExampleInfluence(example_id, side, rank, value)
        for side, ranked in _sides(overall.proponents, overall.opponents)
        for rank, (example_id, value) in enumerate(ranked, start=1)
    )
    return Scored(results, attributions, influences, tuple(shares(result, overall, query_rows.example_ids)))


def _sides(proponents: Ranked, opponents: Ranked) -> tuple[tuple[Side, Ranked], tuple[Side, Ranked]]:
    return ("proponent", proponents), ("opponent", opponents)
