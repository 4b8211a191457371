"""The fidelity that a calibration measured for the method of an audit, and the question that the audit answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import duckdb

from gradtrail.attribution.weighting.aspects import OBJECTIVE as ASPECT
from gradtrail.lineage.read import queries
from gradtrail.nouns import Audit, Fidelity, Target, Weighting

Question = Literal["now", "training"]
"""What a calibration fits to the shortest, and to the longest further training that it measured."""

QUESTIONS: Mapping[Question, str] = {
    "now": "how sensitive the model is now",
    "training": "what shaped the model",
}


def audited_fidelity(
    connection: duckdb.DuckDBPyConnection,
    checkpoint_id: str,
    method: str,
    parameters: Mapping[str, Any],
    weighting_id: str,
    index_ids: Sequence[str],
    target: Target,
    before: int | None = None,
    metric: str = "fidelity_subset",
) -> Fidelity | None:
    """The latest fidelity of exactly this method with these parameters and weighting on these indexes.

    It is the figure after the longest training, or after the shortest where the audit asked about `now`.
    """
    question = parameters.get("named_horizon", "")
    for found in queries.fidelities(connection, checkpoint_id, before):
        said = found.evidence
        if (
            (found.method, found.weighting_id, found.metric) == (method, weighting_id, metric)
            and (said.get("horizon") == question if question else said.get("longest"))
            and said["target"] == target
            and said["index_ids"] == list(index_ids)
            and all(name in parameters and parameters[name] == value for name, value in found.parameters.items())
        ):
            return found
    return None


def not_measured(fidelity: Fidelity | None) -> str:
    """Why a calibration could not measure a fidelity, and what would do, as sentences; empty where it could."""
    if fidelity is None or not fidelity.not_measured_because:
        return ""
    return f"Fidelity could not be measured: {fidelity.not_measured_because}. {_what_would_do(fidelity)}"


def _what_would_do(fidelity: Fidelity) -> str:
    said = fidelity.evidence
    if seeds := said.get("seeds_that_would_do"):
        return (
            f"About {seeds} seeds would do, where {said['seeds']} were trained: gradtrail calibrate --halves "
            f"{said['sets']} --seeds {seeds}."
        )
    return (
        "What was trained does not say how many seeds would do; train for longer or at a larger rate "
        "(gradtrail calibrate --steps, --learning-rate), so that leaving data out does more."
    )


def backed_fidelity(fidelity: Fidelity | None) -> Fidelity | None:
    """The figure, where its noise ceiling backs it."""
    return None if fidelity is None or fidelity.not_measured_because else fidelity


def fidelity_notes(fidelity: Fidelity | None, alone: Fidelity | None = None) -> list[str]:
    """How the figure was measured, as whole sentences for a report; `alone` is `fidelity_loo` of the same method."""
    if fidelity is None:
        return []
    said = fidelity.evidence
    notes = [
        f"It speaks about {said['steps']:,} further steps of {said['optimiser'].upper()} at a learning rate of "
        f"{said['learning_rate']:g}: {said['sets']} random halves left out, {said['seeds']} seeds."
    ]
    if said.get("horizon"):
        notes.append(f"This is the horizon “{said['horizon']}”: the scores answer {QUESTIONS[said['horizon']]}.")
    if said["query_source"] != "outputs":
        notes.append(
            "Fidelity was measured on training examples, with what the model says about them, because too few outputs "
            "were recorded; on outputs it may differ."
        )
    if alone is not None and not alone.not_measured_because:
        notes.append(
            f"Against leaving out single examples, a figure of its own, it is {alone.value:.2f} ± "
            f"{alone.standard_error:.2f} of at most {alone.ceiling:.2f} ({alone.evidence['sets']} examples)."
        )
    return notes + list(said.get("warnings", ()))


def question_of(audit: Audit, weighting: Weighting) -> str:
    """The question that an audit was asked, as sentences for a report; empty where it was asked none by name."""
    asked = []
    question = audit.parameters.get("named_horizon", "")
    if question:
        amount = "shortest" if question == "now" else "longest"
        asked.append(
            f"Asked: {QUESTIONS[question]}. Fitted to the {amount} further training measured (horizon {question})."
        )
    elif "horizon" in audit.parameters:
        tau = audit.parameters["horizon"]
        asked.append(f"Asked: what would further training of {tau:g} (learning rate × steps) do?")
    if weighting.objective.startswith(f"{ASPECT}:"):
        attribute = weighting.objective.removeprefix(f"{ASPECT}:")
        asked.append(
            f"Asked: where did the {attribute} of the output come from? Groups of parameters are weighted so that the "
            f"strongest attributions tell the {attribute}."
        )
    return " ".join(asked)
