"""Features of examples: the projected gradient of each example's loss, in batches, without what must not get in."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice

import torch
from torch import Tensor, nn

from gradtrail.attribution.adapters.base import ModelAdapter, TrainingData
from gradtrail.attribution.adapters.faults import is_out_of_memory, plain_faults
from gradtrail.attribution.features.plan import FeaturePlan
from gradtrail.attribution.features.rows import GradientBatch
from gradtrail.attribution.gradients.checks import check_determinism
from gradtrail.attribution.gradients.forward_passes import hooked_forward
from gradtrail.attribution.gradients.shards import Shard
from gradtrail.attribution.gradients.tracked_model import TrackedModel, track_model
from gradtrail.errors import AttributionWarning, DataError, ModelError, UsageError
from gradtrail.nouns import Example, Target

__all__ = ["GradientBatch", "check_determinism", "compute_features", "iterate_features"]


def compute_features(
    adapter: ModelAdapter,
    model: nn.Module,
    examples: Sequence[Example],
    plan: FeaturePlan,
    *,
    target: Target | None = None,
    device: str | torch.device = "cpu",
) -> GradientBatch:
    """Features of one batch; `model` must already be on `device`.

    `target` None is the training loss and "label" the same loss of an output's true label; "emitted" is what the
    adapter measures for an output's own target (`emitted_losses`).

    Raises:
        DataError: naming every example whose loss or gradient is not finite.
        ModelError: when losses are mis-shaped, or the model cannot be tracked.
    """
    rows, faults = _measure(track_model(adapter, model, plan, device), examples, target)
    if faults:
        raise _non_finite(faults)
    return rows


def iterate_features(
    adapter: ModelAdapter,
    model: nn.Module,
    examples: Iterable[Example] | TrainingData,
    plan: FeaturePlan,
    *,
    batch_size: int,
    device: str | torch.device = "cpu",
    target: Target | None = None,
    on_non_finite: Callable[[str, str], None] | None = None,
    shard: Shard | None = None,
) -> Iterator[GradientBatch]:
    """Features of all `examples` in order, a batch at a time; memory does not grow with their number.

    With `on_non_finite(example_id, cause)` a row that is not finite is reported and left out; without it, it raises.
    A batch that does not fit into memory is halved, and so are those after it, with an `AttributionWarning`. A `shard`
    measures its part of the examples, and gives the rows that the whole run has for them.

    Raises:
        DataError, ModelError: as `compute_features`; ModelError too when one example does not fit into memory.
        UsageError: for a batch size below 1.
    """
    if batch_size < 1:
        raise UsageError(f"A batch size of {batch_size}.", "Choose at least 1.")
    tracked = track_model(adapter, model, plan, device)
    remaining = (shard or Shard()).examples(examples)
    waiting: list[Example] = []
    while waiting := waiting or list(islice(remaining, batch_size)):
        batch = waiting[:batch_size]
        try:
            rows, faults = _measure(tracked, batch, target)
        except RuntimeError as fault:
            if not is_out_of_memory(fault):
                raise
            batch_size = _halved(batch, fault)
            continue
        waiting = waiting[batch_size:]
        if faults and on_non_finite is None:
            raise _non_finite(faults)
        if on_non_finite is not None:
            for example_id, cause in faults.items():
                on_non_finite(example_id, cause)
        if rows.example_ids:
            yield rows


def _halved(batch: Sequence[Example], cause: RuntimeError) -> int:
    if len(batch) == 1:
        raise ModelError(
            f"Example {batch[0].example_id} alone does not fit into memory: {str(cause).splitlines()[0]}",
            "Use a device with more memory, a lower group dimension, or leave layers out.",
        ) from cause
    size = len(batch) // 2
    warnings.warn(
        f"A batch of {len(batch)} examples did not fit into memory; going on with {size}.",
        AttributionWarning,
        stacklevel=2,
    )
    return size


def _measure(
    tracked: TrackedModel, examples: Sequence[Example], target: Target | None
) -> tuple[GradientBatch, dict[str, str]]:
    """Features of the finite rows, and the cause for each example that is not finite."""
    if not examples:
        raise DataError("A batch without examples.", "Pass at least one example.")
    plan = tracked.plan
    with plain_faults(examples), hooked_forward(tracked, examples) as forward:
        measure = tracked.adapter.emitted_losses if target == "emitted" else tracked.adapter.losses
        losses = measure(forward.outputs, forward.batch)
        vectors = forward.vectors(losses)
    losses = losses.detach().cpu().double()
    vectors = vectors.to(device="cpu", dtype=plan.dtype)
    squares = plan.group_squares(vectors)
    faults = _faults(examples, losses, squares, plan)
    kept = [row for row, example in enumerate(examples) if example.example_id not in faults]
    if faults:
        vectors, losses, squares = vectors[kept], losses[kept], squares[kept]
    rows = GradientBatch(
        example_ids=[examples[row].example_id for row in kept],
        vectors=vectors,
        losses=losses,
        squared_norms=squares,
        attributes=_attribute_lists([examples[row].attributes for row in kept]),
    )
    return rows, faults


def _faults(examples: Sequence[Example], losses: Tensor, squares: Tensor, plan: FeaturePlan) -> dict[str, str]:
    faults = {}
    sound = torch.isfinite(losses) & torch.isfinite(squares).all(1)
    for row in torch.nonzero(~sound).flatten().tolist():
        layers = [group.name for group, square in zip(plan.groups, squares[row], strict=True) if not square.isfinite()]
        loss = losses[row].item()
        cause = f"gradient not finite in {', '.join(layers)}" if losses[row].isfinite() else f"loss is {loss}"
        faults[examples[row].example_id] = cause
    return faults


def _non_finite(faults: Mapping[str, str]) -> DataError:
    listed = "; ".join(f"{example_id}: {cause}" for example_id, cause in list(faults.items())[:10])
    return DataError(
        f"{len(faults)} example(s) without a finite loss and gradient: {listed}.",
        "Correct or remove these examples, or quarantine them; if all are affected, look at the checkpoint.",
    )


def _attribute_lists(attributes: Sequence[Mapping[str, str]]) -> dict[str, list[str]]:
    names = sorted({name for mapping in attributes for name in mapping})
    return {name: [mapping.get(name, "") for mapping in attributes] for name in names}
