"""The tensors that a model takes and gives, for the signature that MLflow shows."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from torch import Tensor

from gradtrail.attribution.adapters.base import ModelAdapter, TrainingData, iterate_examples
from gradtrail.storage.models.checkpoints import load_into, read_weights
from gradtrail.tasks.ingest.adapters_alike import outputs_of_first


def measured_shapes(
    adapter: ModelAdapter, weights: Path, data: TrainingData
) -> tuple[dict[str, Tensor], Tensor | None]:
    """Inputs by name, and outputs, of the first training example; nothing where the model does not run here.

    One tensor alone has an empty name, those of a tuple are numbered.
    """
    try:
        model = adapter.build_model()
        load_into(model, read_weights(weights), name=weights.name)
        outputs = outputs_of_first(adapter, model, data)
        inputs = dict(_named("", adapter.collate(list(islice(iterate_examples(data), 1))).inputs))
    except Exception:  # a page without a signature is no reason to refuse a model
        return {}, None
    return inputs, outputs


def _named(name: str, inputs: Any) -> Iterator[tuple[str, Tensor]]:
    if isinstance(inputs, Tensor):
        yield name, inputs
    elif isinstance(inputs, dict):
        for key, value in inputs.items():
            yield from _named(f"{name}.{key}".removeprefix("."), value)
    elif isinstance(inputs, list | tuple):
        for place, value in enumerate(inputs):
            yield from _named(f"{name}.{place}".removeprefix("."), value)
