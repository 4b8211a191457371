"""What a pass needs before it starts: memory measured on a few examples, and the batch that fits into a budget."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gradtrail.attribution.adapters.base import Batch, ModelAdapter
from gradtrail.attribution.features.plan import FeaturePlan
from gradtrail.attribution.gradients.eval_mode import frozen_in_eval
from gradtrail.attribution.gradients.fallback import GRADIENT_BYTES
from gradtrail.attribution.gradients.forward_passes import hooked_forward, prepare
from gradtrail.attribution.gradients.tracked_model import TrackedModel, track_model
from gradtrail.errors import AttributionWarning, DataError, UsageError
from gradtrail.nouns import Example

MEMORY_BUDGET = 2 * 10**9
"""Default: bytes for the pass, beside the model."""
MOST_EXAMPLES = 256
"""Larger batches gain nothing more, and make progress and resumption coarse."""
FEW_EXAMPLES = 64
"""A batch where nobody has measured what an example takes: outputs, queries, and the passes that fit a curvature."""
_LARGEST_AT_ONCE = 3
"""While backward passes a layer, gradients of its output and input and one intermediate stand beside what is kept."""


@dataclass(frozen=True)
class PassMemory:
    """Bytes of a pass over a batch beside the model: `fixed_bytes` and `example_bytes` for each example.

    `whole_bytes` is one example's gradient of the parameters without a layer rule, which is formed before it is
    projected, a limited number at a time. `one_at_a_time` names such parameters where torch.func cannot measure
    examples together: each costs a pass of its own.
    """

    fixed_bytes: int
    example_bytes: int
    whole_bytes: int = 0
    one_at_a_time: tuple[str, ...] = ()

    def peak(self, batch_size: int) -> int:
        """Bytes at the peak of a batch."""
        whole = min(batch_size * self.whole_bytes, max(self.whole_bytes, GRADIENT_BYTES))
        # Whole gradients are stacked from parts, which stand beside them until then.
        return self.fixed_bytes + batch_size * self.example_bytes + 2 * whole


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
    tracked = track_model(adapter, model, plan, device)
    prepare(tracked, examples)
    alone = [_batch_bytes(tracked, [example]) for example in examples]
    largest = max(range(len(alone)), key=alone.__getitem__)
    pair = _batch_bytes(tracked, [examples[largest]] * 2)
    each = max(pair - alone[largest], 1)
    projections = sum(_nbytes(side) for part in tracked.projections for side in (part.outputs, part.inputs))
    fallback = None if tracked.routes is None else tracked.routes.fallback
    names = () if fallback is None or not fallback.one_at_a_time else tuple(fallback.names)
    whole = 0 if fallback is None else fallback.gradient_bytes
    return PassMemory(projections + max(alone[largest] - each, 0), each, whole, names)


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
    return next(size for size in range(max(most, 1), 0, -1) if memory.peak(size) <= budget)


def _batch_bytes(tracked: TrackedModel, examples: Sequence[Example]) -> int:
    """Bytes at the peak of a batch that grow with it: what autograd and our hooks keep, and the largest gradients."""
    kept = _Kept(tracked.model)
    with kept.counting(), hooked_forward(tracked, examples) as forward:
        losses = tracked.adapter.losses(forward.outputs, forward.batch)
        kept.add_batch(forward.batch)
        ours = forward.kept_bytes
    vectors = 2 * len(losses) * tracked.plan.dimension * torch.finfo(tracked.plan.dtype).bits // 8
    return vectors + max(kept.peak() + ours, _fallback_bytes(tracked, examples))


def _fallback_bytes(tracked: TrackedModel, examples: Sequence[Example]) -> int:
    """What the pass for parameters without a layer rule keeps: as autograd runs it, which torch.func resembles."""
    fallback = None if tracked.routes is None else tracked.routes.fallback
    if fallback is None:
        return 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AttributionWarning)
        with hooked_forward(tracked, examples) as forward:
            forward.vectors(tracked.adapter.losses(forward.outputs, forward.batch))
            batch = forward.batch
    kept = _Kept(tracked.model)
    parameters = dict(tracked.model.named_parameters())
    with frozen_in_eval(tracked.model):
        for name in fallback.names:
            parameters[name].requires_grad_(True)
        with kept.counting():
            tracked.run(tracked.model, batch.with_each(torch.clone))
    return kept.peak()


class _Kept:
    """The memory that a forward pass keeps for backward, without the model's own, each storage once."""

    def __init__(self, model: nn.Module) -> None:
        self._own = {_place(tensor) for tensor in (*model.parameters(), *model.buffers())}
        self._kept: dict[tuple[torch.device, int], int] = {}

    def counting(self) -> torch.autograd.graph.saved_tensors_hooks:
        """Counts what autograd saves while it is entered."""
        return torch.autograd.graph.saved_tensors_hooks(self._add, lambda tensor: tensor)

    def add_batch(self, batch: Batch) -> None:
        """Counts a batch's own tensors."""
        batch.with_each(self._add)

    def peak(self) -> int:
        """All that is kept, and what backward needs for its largest step."""
        return sum(self._kept.values()) + _LARGEST_AT_ONCE * max(self._kept.values(), default=0)

    def _add(self, tensor: Tensor) -> Tensor:
        if _place(tensor) not in self._own:
            self._kept[_place(tensor)] = tensor.untyped_storage().nbytes()
        return tensor


def _place(tensor: Tensor) -> tuple[torch.device, int]:
    return tensor.device, tensor.untyped_storage().data_ptr()


def _nbytes(tensor: Tensor) -> int:
    return tensor.untyped_storage().nbytes()
