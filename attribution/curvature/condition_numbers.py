"""How well a curvature can be inverted: rank, smallest eigenvalue, condition after damping, and what to warn about."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gradtrail.attribution.curvature.blocks import BlockCurvature, DiagonalCurvature
from gradtrail.attribution.curvature.damping import Damping
from gradtrail.attribution.curvature.spectrum import Spectrum
from gradtrail.attribution.features.plan import FeaturePlan

WORST_CONDITION = 1e6
"""Features kept in float32 have seven digits: beyond this, one digit or less of a score is left."""
_NAMED_GROUPS = 3


@dataclass(frozen=True)
class Conditioning:
    """One matrix before and after damping. `group` is a group's name, or "all groups together"."""

    group: str
    dimension: int
    rank: int
    smallest_eigenvalue: float
    largest_eigenvalue: float
    damping: float

    @property
    def condition(self) -> float:
        """Largest over smallest eigenvalue after damping; infinite where the smallest is zero."""
        smallest = self.smallest_eigenvalue + self.damping
        return (self.largest_eigenvalue + self.damping) / smallest if smallest > 0 else float("inf")


def conditioning(
    curvature: BlockCurvature | DiagonalCurvature | Spectrum, plan: FeaturePlan, damping: Damping
) -> list[Conditioning]:
    """One entry per group, or one for all together; groups without any gradient are left out."""
    found = []
    for name, dimension, eigenvalues in _spectra(curvature, plan):
        largest = eigenvalues.max().item()
        if largest <= 0:
            continue
        tolerance = dimension * torch.finfo(torch.float64).eps * largest
        smallest = eigenvalues.min().item() if len(eigenvalues) == dimension else 0.0
        found.append(
            Conditioning(
                group=name,
                dimension=dimension,
                rank=int((eigenvalues > tolerance).sum()),
                smallest_eigenvalue=smallest if smallest > tolerance else 0.0,
                largest_eigenvalue=largest,
                damping=damping.of(eigenvalues.sum().item() / dimension),
            )
        )
    return found


def conditioning_warnings(found: Sequence[Conditioning], example_count: int) -> tuple[str, ...]:
    """Whole sentences for people, none when all is well."""
    warnings = []
    thin = [entry for entry in found if 2 * entry.rank <= entry.dimension]
    if thin:
        ranks = _named([f"{entry.group}: rank {entry.rank} of {entry.dimension}" for entry in thin])
        warnings.append(
            f"The curvature, a mean over {example_count:,} examples, says nothing about half of the directions or more "
            f"({ranks}): there the damping alone decides."
        )
    bad = [entry for entry in found if entry.condition > WORST_CONDITION]
    if bad:
        named = _named(
            [
                f"{entry.group}: smallest eigenvalue {entry.smallest_eigenvalue:.2g}, damping {entry.damping:.2g}, "
                f"condition {entry.condition:.1g}"
                for entry in bad
            ]
        )
        warnings.append(
            f"The damped curvature is badly conditioned ({named}): scores follow its smallest eigenvalues, which are "
            "the least certain. Raise the damping."
        )
    return tuple(warnings)


def _spectra(
    curvature: BlockCurvature | DiagonalCurvature | Spectrum, plan: FeaturePlan
) -> Iterator[tuple[str, int, Tensor]]:
    if isinstance(curvature, Spectrum):
        yield "all groups together", plan.dimension, curvature.eigenvalues
        return
    for position, (group, columns) in enumerate(zip(plan.groups, plan.slices, strict=True)):
        if isinstance(curvature, BlockCurvature):
            yield group.name, group.dimension, torch.linalg.eigvalsh(curvature.blocks[position])
        else:
            yield group.name, group.dimension, curvature.diagonal[columns]


def _named(entries: Sequence[str]) -> str:
    rest = len(entries) - _NAMED_GROUPS
    return "; ".join(entries[:_NAMED_GROUPS]) + (f"; and {rest} more" if rest > 0 else "")
