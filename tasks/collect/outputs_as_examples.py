"""Recorded outputs, turned into examples: things with a loss that can be measured like training data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gradtrail.errors import DataError, GradtrailError
from gradtrail.lineage.read import queries
from gradtrail.nouns import Example, Output, Target
from gradtrail.storage.sources.outputs import payload_record
from gradtrail.tasks.core.models import PinnedModel
from gradtrail.tasks.core.workspace import Workspace


def output_example(pinned: PinnedModel, output: Output, record: Mapping[str, Any], target: Target) -> Example:
    """An observed output as something with a loss, under the output's own id.

    Raises:
        DataError: if the record lacks what the adapter needs, or the adapter fails over it.
    """
    try:
        example = pinned.adapter.output_to_example(record, target)
    except (GradtrailError, OSError, MemoryError):
        raise
    except Exception as fault:
        raise DataError(
            f"The adapter {pinned.model_version.adapter} fails over output {output.output_id}: "
            f"{type(fault).__name__}: {fault}",
            "See that the record has what the adapter's output_to_example reads.",
        ) from fault
    return Example(output.output_id, example.inputs, example.target, example.attributes)


def output_examples(
    workspace: Workspace, pinned: PinnedModel, target: Target, output_ids: Sequence[str]
) -> list[Example]:
    """Recorded outputs as examples again, in the order of `output_ids`.

    Raises:
        NotFoundError: if a payload is gone.
    """
    payloads = workspace.payloads()
    with workspace.ledger().read() as connection:
        found = {output.output_id: output for output in queries.outputs(connection, output_ids)}
    outputs = [found[output_id] for output_id in output_ids]
    return [output_example(pinned, each, payload_record(payloads.get(each.payload_sha256)), target) for each in outputs]
