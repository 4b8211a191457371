"""Groups and examples that no gradient reached: no fault of the pass, but nothing can be attributed through them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from gradtrail.attribution.features.plan import FeaturePlan

_NAMED_AT_MOST = 5


@dataclass(frozen=True)
class GradientHealth:
    """Counts over `examples`: those without any gradient, and the groups that have none in any example."""

    examples: int
    zero_examples: int
    zero_groups: tuple[str, ...]

    def warnings(self) -> tuple[str, ...]:
        """One sentence for each kind that was found."""
        found = []
        if self.zero_groups:
            more = len(self.zero_groups) - _NAMED_AT_MOST
            listed = ", ".join(self.zero_groups[:_NAMED_AT_MOST]) + (f" and {more} more" if more > 0 else "")
            found.append(
                f"{len(self.zero_groups)} parameter group(s) have no gradient in any of {self.examples:,} examples: "
                f"{listed}. The loss does not depend on them: dead units, a detached branch, or parameters that the "
                "forward pass does not use."
            )
        if self.zero_examples:
            found.append(
                f"{self.zero_examples:,} of {self.examples:,} examples have no gradient at all, so that nothing can be "
                "attributed to them."
            )
        return tuple(found)


def gradient_health(squared_norms: Iterable[Tensor], plan: FeaturePlan) -> GradientHealth:
    """Count over batches of squared norms, each (batch, groups)."""
    reached = torch.zeros(len(plan.groups), dtype=torch.bool)
    examples = zero_examples = 0
    for norms in squared_norms:
        positive = norms > 0
        reached |= positive.any(0).cpu()
        examples += len(norms)
        zero_examples += int((~positive.any(1)).sum().item())
    names = [group.name for group, was_reached in zip(plan.groups, reached.tolist(), strict=True) if not was_reached]
    return GradientHealth(examples, zero_examples, tuple(names) if examples else ())
