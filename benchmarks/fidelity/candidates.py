"""What is judged: the scores of one engine, method and setting, split by group."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from gradtrail.attribution.features.plan import FeaturePlan

ENGINE = "gradtrail"
MORE = "gradtrail, five trainings"
FURTHER = "unrolled, further training"
"""A function of the library; no audit trains further for its indexes."""
"""Not on the checkpoints that peers have, so in no comparison with them; it shows what one training cannot know."""


@dataclass(frozen=True)
class Candidate:
    """What one engine, method and setting scored: contributions (queries, examples, groups) float64.

    Peers' have one group. `plan` names the groups of ours; `damping` is absolute, None where there is none.
    """

    engine: str
    method: str
    contributions: Tensor
    parameters: Mapping[str, Any] = field(default_factory=dict)
    damping: float | None = None
    plan: FeaturePlan | None = None


def sum_of(values: Iterable[Tensor]) -> Tensor:
    """Of at least one."""
    return torch.stack(list(values)).sum(0)


def repeated(plan: FeaturePlan, parts: Sequence[str]) -> FeaturePlan:
    """The plan of contributions that are those of `plan` for each part, side by side."""
    groups = tuple(dataclasses.replace(group, name=f"{part}: {group.name}") for part in parts for group in plan.groups)
    return dataclasses.replace(plan, groups=groups)
