"""Measure outputs: their gradients, as the pinned checkpoints see them, stored beside each index."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from gradtrail.attribution.adapters.base import model_outputs
from gradtrail.attribution.gradients.capture import compute_features
from gradtrail.attribution.gradients.memory import FEW_EXAMPLES
from gradtrail.errors import DataError, NotFoundError, StoreError, said
from gradtrail.lineage.read import queries
from gradtrail.nouns import Example
from gradtrail.storage.sources.outputs import payload_record
from gradtrail.tasks.audit.audited_model import AuditedModel
from gradtrail.tasks.audit.options import AuditOptions
from gradtrail.tasks.collect.outputs_as_examples import output_example
from gradtrail.tasks.core.datasets import checked_example
from gradtrail.tasks.core.measured_outputs import MEASURING, MeasuredOutput, MeasuredOutputs
from gradtrail.tasks.core.models import PinnedModel
from gradtrail.tasks.core.progress import progress_bar
from gradtrail.tasks.index.opened import OpenIndex

# What is no output's fault: measured again by the next run.
_AWAY = (StoreError, OSError, MemoryError, torch.OutOfMemoryError)


@dataclass(frozen=True)
class _Asked:
    """An output as what is `measured` of it, with the emitted target or the label, and as what was `emitted`."""

    measured: Example
    emitted: Example


def measure_outputs(audited: AuditedModel, output_ids: Sequence[str]) -> MeasuredOutputs:
    """Store φ(q) of every output beside each index, the serving checkpoint's last.

    An output that cannot be measured is quarantined with its cause; one without a label waits while labels are asked.

    Raises:
        Exception: what measuring a training example raises too, so that it is the model or the machine that fails.
    """
    payloads, ledger = audited.workspace.payloads(), audited.workspace.ledger()
    pinned, opened, models, options = audited.pinned, audited.opened, audited.models, audited.options
    with ledger.read() as connection:
        outputs = queries.outputs(connection, output_ids)
    measured: list[MeasuredOutput] = []
    unread: list[tuple[str, str]] = []
    with progress_bar("measuring outputs", len(outputs)) as bar:
        for start in range(0, len(outputs), FEW_EXAMPLES):
            chunk = outputs[start : start + FEW_EXAMPLES]
            examples: list[_Asked] = []
            for output in chunk:
                try:
                    record = payload_record(payloads.get(output.payload_sha256))
                    if options.target == "label" and record.get("label") is None:
                        continue
                    emitted = output_example(pinned, output, record, "emitted")
                    asked = emitted
                    if options.target == "label":
                        asked = output_example(pinned, output, record, "label")
                    examples.append(_Asked(asked, emitted))
                except (DataError, NotFoundError, StoreError) as fault:
                    if isinstance(fault, StoreError) and isinstance(fault.__cause__, OSError):
                        unread.append((output.output_id, str(fault)))
                    else:
                        ledger.record_quarantine(MEASURING[options.target], output.output_id, str(fault))
            pieces = [examples] if examples else []
            while pieces:
                piece = pieces.pop(0)
                try:
                    measured += _measure(pinned, models, opened, piece, options)
                except _AWAY:
                    raise
                except Exception as fault:
                    if len(piece) > 1:
                        pieces = [[each] for each in piece] + pieces
                        continue
                    if not isinstance(fault, DataError):
                        _require_sound_model(pinned, models, opened, options)
                    ledger.record_quarantine(MEASURING[options.target], piece[0].measured.example_id, said(fault))
            bar.advance(len(chunk))
    return MeasuredOutputs(tuple(measured), tuple(unread))


def _require_sound_model(
    pinned: PinnedModel, models: Sequence[nn.Module], opened: Sequence[OpenIndex], options: AuditOptions
) -> None:
    """Measure the first training example: where that fails, too, the output before it is not to blame."""
    example = checked_example(pinned.training_data[0], 0)
    for model, each in zip(models, opened, strict=True):
        compute_features(pinned.adapter, model, [example], each.plan, device=options.device)


def _measure(
    pinned: PinnedModel,
    models: Sequence[nn.Module],
    opened: Sequence[OpenIndex],
    asked: list[_Asked],
    options: AuditOptions,
) -> list[MeasuredOutput]:
    examples = [each.measured for each in asked]
    features = [
        compute_features(pinned.adapter, model, examples, each.plan, target=options.target, device=options.device)
        for model, each in zip(models, opened, strict=True)
    ]
    for each, rows in zip(opened, features, strict=True):
        each.table.put_queries(
            output_ids=rows.example_ids,
            targets=[options.target] * len(examples),
            vectors=rows.vectors.cpu().numpy(),
            losses=rows.losses.cpu().numpy(),
            squared_norms=rows.squared_norms.cpu().numpy(),
        )
    batch = pinned.adapter.collate([each.emitted for each in asked]).to(options.device)
    with torch.no_grad():
        reproduced = pinned.adapter.reproduced(model_outputs(pinned.adapter, models[-1], batch), batch)
    return [
        MeasuredOutput(each.emitted.example_id, pinned.adapter.target_text(each.emitted.target), same)
        for each, same in zip(asked, reproduced, strict=True)
    ]
