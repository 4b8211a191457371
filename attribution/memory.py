"""What a pass needs before it starts: memory measured on a few examples, and the batch that fits into a budget."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gradtrail.attribution.adapters import ModelAdapter
from gradtrail.attribution.fallback import AttributionWarning
from gradtrail.attribution.features import FeaturePlan
from gradtrail.attribution.instrument import Instrument, build_instrument
from gradtrail.attribution.recording import recording
from gradtrail.errors import DataError, UsageError
from gradtrail.nouns import Example

MEMORY_BUDGET = 2 * 10**9
"""Default: bytes for the pass, beside the model."""
MOST_EXAMPLES = 256
"""Larger batches gain nothing more, and make progress and resumption coarse."""
_LARGEST_AT_ONCE = 3
"""While backward passes a layer, gradients of its output and input and one intermediate stand beside what is kept."""


@dataclass(frozen=True)
class PassMemory:
    """Bytes of a pass over a batch beside the model: `fixed_bytes` and `example_bytes` for each example.

    `one_at_a_time` names parameters that torch.func cannot measure together: each example costs a pass of its own.
    """

    fixed_bytes: int
    example_bytes: int
    one_at_a_time: tuple[str, ...] = ()

    def peak(self, batch_size: int) -> int:
        """Bytes at the peak of a batch."""
        return self.fixed_bytes + batch_size * self.example_bytes


def measure_memory(
    adapter: ModelAdapter,
    model: nn.Module,
    examples: Sequence[Example],
    plan: FeaturePlan,
    device: str | torch.device = "cpu",
) -> PassMemory:
    """Run `examples` (a few) alone, then the largest of them twice in one batch, and count what a backward pass keeps.

    The count is of tensors and the same on every device. It is a good estimate rather than a bound: allocators round
    up, and kernels use workspace.

    Raises:
        DataError: without examples.
        ModelError: when the model cannot be tracked.
    """
    if not examples:
        raise DataError("A memory estimate without examples.", "Pass at least one example.")
    instrument = build_instrument(adapter, model, plan, device)
    alone = [_batch_bytes(instrument, [example]) for example in examples]
    largest = max(range(len(alone)), key=alone.__getitem__)
    pair = _batch_bytes(instrument, [examples[largest]] * 2)
    each = max(pair - alone[largest], 1)
    projections = sum(_nbytes(side) for part in instrument.projections for side in (part.outputs, part.inputs))
    slow = instrument.fallback is not None and instrument.fallback.one_at_a_time
    names = tuple(name for group in plan.groups if not group.modules for name in group.parameters) if slow else ()
    whole = 0 if instrument.fallback is None else instrument.fallback.chunk_bytes(MOST_EXAMPLES)
    return PassMemory(projections + max(alone[largest] - each, 0) + whole, each, names)


def choose_batch_size(memory: PassMemory, budget: int = MEMORY_BUDGET, most: int = MOST_EXAMPLES) -> int:
    """The largest batch up to `most` whose peak stays within `budget` bytes.

    Raises:
        UsageError: when one example does not fit.
    """
    if memory.peak(1) > budget:
        raise UsageError(
            f"A memory budget of {budget / 1e6:,.0f} MB is too small: one example takes {memory.peak(1) / 1e6:,.0f} MB "
            "beside the model.",
            "Raise the memory budget, lower the group dimension, or leave layers out.",
        )
    return max(1, min(most, (budget - memory.fixed_bytes) // memory.example_bytes))


def _batch_bytes(instrument: Instrument, examples: Sequence[Example]) -> int:
    """Bytes at the peak of a batch that grow with it: what autograd and our hooks keep, and the largest gradients."""
    weights = {_place(tensor) for tensor in (*instrument.model.parameters(), *instrument.model.buffers())}
    kept: dict[tuple[torch.device, int], int] = {}

    def count(tensor: Tensor) -> Tensor:
        if _place(tensor) not in weights:
            kept[_place(tensor)] = tensor.untyped_storage().nbytes()
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor),
        recording(instrument, examples) as record,
    ):
        losses = instrument.adapter.losses(record.outputs, record.batch)
        record.batch.with_each(count)
        ours = record.kept_bytes
    if instrument.fallback is not None:
        # In a pass of its own: torch.func does not run under hooks on what autograd keeps.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", AttributionWarning)
            with recording(instrument, examples) as record:
                record.vectors(instrument.adapter.losses(record.outputs, record.batch))
    vectors = 2 * len(losses) * instrument.plan.dimension * torch.finfo(instrument.plan.dtype).bits // 8
    return sum(kept.values()) + ours + vectors + _LARGEST_AT_ONCE * max(kept.values(), default=0)


def _place(tensor: Tensor) -> tuple[torch.device, int]:
    return tensor.device, tensor.untyped_storage().data_ptr()


def _nbytes(tensor: Tensor) -> int:
    return tensor.untyped_storage().nbytes()
