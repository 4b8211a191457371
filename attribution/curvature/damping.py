"""Damping: what is added to a curvature's eigenvalues before they are inverted (METHODS: damping).

Λ ≈ 1 / (learning rate × steps): it says how long a further training the scores speak about.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite

from gradtrail.errors import UsageError


@dataclass(frozen=True)
class Damping:
    """Λ = relative × mean eigenvalue of what is damped + absolute.

    An objective with a summed loss and the penalty ½λ‖θ‖² has an absolute damping of λ over the number of examples.

    Raises:
        UsageError: when one of them is negative or not finite.
    """

    relative: float = 1.0
    absolute: float = 0.0

    def __post_init__(self) -> None:
        if not all(isfinite(value) and value >= 0 for value in (self.relative, self.absolute)):
            raise UsageError(
                f"Damping relative={self.relative}, absolute={self.absolute}.", "Choose finite dampings of at least 0."
            )

    def of(self, mean_eigenvalue: float) -> float:
        """Λ for a curvature with this mean eigenvalue."""
        return self.relative * mean_eigenvalue + self.absolute


DEFAULT_DAMPING = Damping()
"""Where nobody chose one: the mean eigenvalue once."""
