"""Queries of a calibration: outputs that were recorded, or training examples where those are too few."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch

from gradtrail.attribution.adapters.base import ClassificationAdapter, TrainingData, model_outputs
from gradtrail.attribution.fidelity.evaluation import FEWEST_QUERIES, split_queries
from gradtrail.errors import DataError, NotFoundError, StoreError
from gradtrail.lineage.read import queries
from gradtrail.nouns import Example, Output, Target
from gradtrail.storage.sources.outputs import payload_record
from gradtrail.tasks.collect.outputs_as_examples import output_example
from gradtrail.tasks.core.models import PinnedModel
from gradtrail.tasks.core.workspace import Workspace

FEWEST_OUTPUTS = 12

QuerySource = Literal["outputs", "training examples"]


@dataclass(frozen=True)
class QuerySet:
    """Queries and where they come from."""

    source: QuerySource
    examples: tuple[Example, ...]


@dataclass(frozen=True)
class QueryRoles:
    """Disjoint positions of queries: weights are fitted on some, methods chosen on others, figures are of the rest.

    Without weights to fit there are two sets, and `not_fitted_because` says why.
    """

    fitting: tuple[int, ...]
    choosing: tuple[int, ...]
    reporting: tuple[int, ...]
    not_fitted_because: str = ""


def query_roles(count: int, weightings: Sequence[str], seed: int) -> QueryRoles:
    """Three sets of queries, or two where no weights are wanted or queries are too few to fit any.

    Raises:
        UsageError: for fewer queries than two sets need.
    """
    if weightings and count >= 3 * FEWEST_QUERIES:
        fitting, choosing, reporting = split_queries(count, 3, seed)
        return QueryRoles(tuple(fitting), tuple(choosing), tuple(reporting))
    choosing, reporting = split_queries(count, 2, seed)
    cause = f"{count} queries make two sets of {FEWEST_QUERIES}, not three" if weightings else "none was asked for"
    return QueryRoles((), tuple(choosing), tuple(reporting), f"No weights were fitted: {cause}.")


def draw_queries(
    workspace: Workspace, pinned: PinnedModel, training: TrainingData, target: Target, most: int, seed: int
) -> QuerySet:
    """At most `most` queries, drawn at random: recorded outputs if there are twelve, else training examples."""
    with workspace.ledger().read() as connection:
        recorded = queries.outputs_of(connection, pinned.model_version.model_version_id)
    generator = np.random.default_rng(seed)
    found: list[Example] = []
    for place in generator.permutation(len(recorded)).tolist():
        if len(found) == most:
            break
        found += _usable(workspace, pinned, recorded[place], target)
    if len(found) >= FEWEST_OUTPUTS:
        return QuerySet("outputs", tuple(sorted(found, key=lambda example: example.example_id)))
    places = sorted(generator.permutation(len(training))[:most].tolist())
    chosen = [training[place] for place in places]
    return QuerySet("training examples", tuple(as_queries(pinned, chosen, target)))


def as_queries(pinned: PinnedModel, examples: Sequence[Example], target: Target) -> list[Example]:
    """Training examples as queries for a target: what the model says of them, or as they are."""
    return _emitted(pinned, examples) if target == "emitted" else list(examples)


def _usable(workspace: Workspace, pinned: PinnedModel, output: Output, target: Target) -> list[Example]:
    """The output as an example, or nothing where its payload is gone, cannot be read or has no label."""
    try:
        record = payload_record(workspace.payloads().get(output.payload_sha256))
        if target == "label" and record.get("label") is None:
            return []
        return [output_example(pinned, output, record, target)]
    except (DataError, NotFoundError, StoreError):
        return []


def _emitted(pinned: PinnedModel, examples: Sequence[Example]) -> list[Example]:
    """Examples with what the model says in the place of their label, where that is a class."""
    adapter = pinned.adapter
    if not isinstance(adapter, ClassificationAdapter):
        return list(examples)
    batch = adapter.collate(examples)
    with torch.no_grad():
        said = adapter.emitted(model_outputs(adapter, pinned.load(pinned.serving), batch), batch)
    return [
        replace(example, target=adapter.read_target(text, {"record_id": example.example_id}))
        for example, text in zip(examples, said, strict=True)
    ]
