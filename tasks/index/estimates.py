"""What an index pass will take, said before it starts: disk, memory, and the batch that fits into the budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from gradtrail.attribution.adapters.base import ModelAdapter
from gradtrail.attribution.features.plan import FeaturePlan
from gradtrail.attribution.gradients.memory import choose_batch_size, measure_memory
from gradtrail.nouns import Example
from gradtrail.storage.gradients.store import GradientStore, VectorType


@dataclass(frozen=True)
class PassEstimate:
    """Bytes on disk of the whole index, bytes of memory beside the model at the peak, and examples in a batch.

    `one_at_a_time` counts parameters that cost a pass for each example.
    """

    disk_bytes: int
    memory_bytes: int
    batch_size: int
    dimension: int
    dtype: VectorType
    one_at_a_time: int

    def sentence(self, examples: int, workers: int = 1) -> str:
        """The estimate for people, before `examples` are measured by so many processes of `memory_bytes` each."""
        slow = (
            f"; {self.one_at_a_time} parameters without a layer rule take a pass for each example"
            if self.one_at_a_time
            else ""
        )
        return (
            f"Measuring {examples:,} examples, {self.dimension:,} numbers each as {self.dtype}: about "
            f"{_megabytes(self.disk_bytes)} on disk and {_megabytes(self.memory_bytes)} of memory beside the model, in "
            f"batches of {self.batch_size}{f', in each of {workers} processes' if workers > 1 else ''}{slow}."
        )


def estimate_pass(
    adapter: ModelAdapter,
    model: nn.Module,
    sample: Sequence[Example],
    plan: FeaturePlan,
    *,
    rows: int,
    dtype: VectorType,
    memory_budget: int,
    largest_batch: int,
    device: str,
) -> PassEstimate:
    """Measure the `sample`, and choose the batch.

    Raises:
        UsageError: when one example does not fit into the budget.
    """
    memory = measure_memory(adapter, model, sample, plan, device)
    batch_size = choose_batch_size(memory, memory_budget, largest_batch)
    return PassEstimate(
        disk_bytes=GradientStore.estimate(rows, plan.dimension, len(plan.groups), dtype),
        memory_bytes=memory.peak(batch_size),
        batch_size=batch_size,
        dimension=plan.dimension,
        dtype=dtype,
        one_at_a_time=len(memory.one_at_a_time),
    )


def _megabytes(count: int) -> str:
    return f"{count / 1e9:,.1f} GB" if count >= 10**9 else f"{max(count / 1e6, 0.1):,.1f} MB"
