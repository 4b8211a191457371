"""The fidelity that a calibration measured for the method of an audit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import duckdb

from gradtrail.lineage import queries
from gradtrail.nouns import Fidelity, Target


def audited_fidelity(
    connection: duckdb.DuckDBPyConnection,
    checkpoint_id: str,
    method: str,
    parameters: Mapping[str, Any],
    weighting_id: str,
    index_ids: Sequence[str],
    target: Target,
    before: int | None = None,
) -> Fidelity | None:
    """The latest fidelity of exactly this method with these parameters on these indexes, after the longest training."""
    for found in queries.fidelities(connection, checkpoint_id, before):
        if (
            (found.method, found.weighting_id, found.metric) == (method, weighting_id, "fidelity_subset")
            and found.evidence.get("longest")
            and found.evidence["target"] == target
            and found.evidence["index_ids"] == list(index_ids)
            and all(name in parameters and parameters[name] == value for name, value in found.parameters.items())
        ):
            return found
    return None


def fidelity_notes(fidelity: Fidelity | None) -> list[str]:
    """How the figure was measured, as whole sentences for a report."""
    if fidelity is None:
        return []
    said = fidelity.evidence
    notes = [
        f"It speaks about {said['steps']:,} further steps of {said['optimiser'].upper()} at a learning rate of "
        f"{said['learning_rate']:g}: {said['sets']} random halves left out, {said['seeds']} seeds."
    ]
    if said["query_source"] != "outputs":
        notes.append(
            "Fidelity was measured on training examples, with what the model says about them, because too few outputs "
            "were recorded; on outputs it may differ."
        )
    return notes
