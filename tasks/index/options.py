"""How an index is projected, stored and measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch

from gradtrail.attribution.features.plan import FeaturePlan, FeatureSettings, plan_features
from gradtrail.attribution.features.weights import group_weights
from gradtrail.attribution.gradients.memory import MEMORY_BUDGET
from gradtrail.attribution.gradients.shards import Shard
from gradtrail.errors import UsageError
from gradtrail.nouns import Weighting
from gradtrail.storage.gradients.store import VectorType
from gradtrail.tasks.core.models import PinnedModel


@dataclass(frozen=True)
class IndexOptions:
    """How gradients are stored.

    Attributes:
        group_dimension: numbers kept a parameter group.
        seed: of the random projection.
        device: where the pass runs.
        projection: `random`, or `eigen` for the eigenbasis of the Kronecker factors.
        factors: curvature kind of those factors; empty picks `fisher` where the adapter can sample.
        dtype: what vectors are stored as; `int8` keeps a scale for each row and group.
        total_dimension: numbers kept for all groups together, shared out by their sizes; instead of `group_dimension`.
        autocast: `bfloat16` runs the model in lower precision where torch does.
        exclude: patterns on names of modules and parameters to leave out, beside those of the adapter; reports say so.
        fallback: whether parameters without a layer rule are measured by autograd.
        fallback_for: patterns on names of modules to measure by autograd although they have a rule, beside those of the
            adapter.
        memory_budget: bytes of the pass beside the model; batches are made to fit.
        weighting: beginning of the id of a learned weighting, or its aspect, to store vectors under; empty is uniform.
        shard: `k/n` measures every n-th missing example only; a run without it completes and seals the index.
        workers: processes on this machine that share the measuring, with a part of its cores and of the budget each; a
            script that asks for several begins its work under `if __name__ == "__main__":`, for each imports it.
    """

    group_dimension: int = 256
    seed: int = 0
    device: str = "cpu"
    projection: Literal["random", "eigen"] = "random"
    factors: str = ""
    dtype: VectorType = "float32"
    total_dimension: int | None = None
    autocast: Literal["none", "bfloat16"] = "none"
    exclude: tuple[str, ...] = ()
    fallback: bool = True
    fallback_for: tuple[str, ...] = ()
    memory_budget: int = MEMORY_BUDGET
    shard: str = "1/1"
    weighting: str = ""
    workers: int = 1

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise UsageError(f"An index measured by {self.workers} workers.", "Choose at least 1.")

    def for_worker(self, number: int) -> IndexOptions:
        """What worker `number`, from 1, measures: its part of the shard, on one of the devices if there are several."""
        several = self.device == "cuda" and torch.cuda.device_count() > 1
        return replace(
            self,
            shard=str(Shard.of_text(self.shard).part(number, self.workers)),
            device=f"cuda:{(number - 1) % torch.cuda.device_count()}" if several else self.device,
            memory_budget=self.memory_budget // self.workers,
            workers=1,
        )

    def plan(self, pinned: PinnedModel, stored: Weighting | None = None) -> FeaturePlan:
        """The groups of this model and how each is stored, under the weighting `stored`.

        Raises:
            UsageError: when the weighting is of other groups.
        """
        settings = FeatureSettings(
            group_dimension=self.group_dimension,
            seed=self.seed,
            dtype=self.dtype,
            total_dimension=self.total_dimension,
            autocast=self.autocast,
            exclude=_patterns(pinned, "exclude", self.exclude),
            fallback=self.fallback,
            fallback_for=_patterns(pinned, "fallback_for", self.fallback_for),
            stored_weighting=stored if stored is not None and stored.group_weights else None,
        )
        plan = plan_features(pinned.load(pinned.serving), settings)
        group_weights(plan.stored_weighting or Weighting(), plan)
        return plan


def _patterns(pinned: PinnedModel, name: str, asked: Sequence[str]) -> tuple[str, ...]:
    """Patterns of the adapter, then those that were asked for, each once."""
    own: object = getattr(pinned.adapter, name)
    if isinstance(own, str) or not isinstance(own, Sequence):
        raise UsageError(
            f"The adapter {pinned.model_version.adapter} has {name} = {own!r}.",
            f'Make it a tuple of patterns, such as {name} = ("encoder.norm*",).',
        )
    return tuple(dict.fromkeys((*own, *asked)))
