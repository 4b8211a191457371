"""Least squares under x ≥ 0, by the active-set method of Lawson and Hanson (Solving Least Squares Problems, 1974)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gradtrail.errors import DataError

_TURNS_PER_UNKNOWN = 10


def nonnegative_least_squares(matrix: NDArray[np.float64], target: NDArray[np.float64]) -> NDArray[np.float64]:
    """The x ≥ 0 (columns,) that minimises ‖matrix x − target‖ for a matrix (rows, columns).

    Unknowns enter one at a time, the one along which the residual falls fastest first, and leave again where a full
    step would make them negative. It is the only minimiser where the columns are linearly independent.

    Raises:
        DataError: for values that are not finite, shapes that do not fit, or a problem too ill-conditioned to settle.
    """
    if matrix.ndim != 2 or target.shape != matrix.shape[:1]:  # noqa: PLR2004 (a matrix has two axes)
        raise DataError(f"A matrix of shape {matrix.shape} for a target of shape {target.shape}.", "Give equal rows.")
    if not (np.isfinite(matrix).all() and np.isfinite(target).all()):
        raise DataError("Least squares with values that are not finite.", "Look for a diverged measurement.")
    count = matrix.shape[1]
    gram, moment = matrix.T @ matrix, matrix.T @ target
    tolerance = 10 * np.finfo(np.float64).eps * max(matrix.shape) * max(float(np.abs(moment).max(initial=0.0)), 1e-300)
    found = np.zeros(count)
    free = np.zeros(count, dtype=bool)
    for _ in range(_TURNS_PER_UNKNOWN * max(count, 1)):
        descent = np.where(free, -np.inf, moment - gram @ found)
        entering = int(descent.argmax()) if count else 0
        if free.all() or descent[entering] <= tolerance:
            return found
        free[entering] = True
        found = _settle(matrix, target, found, free)
    raise DataError(
        f"Non-negative least squares with {count} unknowns did not settle: the columns nearly depend on each other.",
        "Fit fewer groups (a coarser level), or a larger ridge.",
    )


def _settle(
    matrix: NDArray[np.float64], target: NDArray[np.float64], before: NDArray[np.float64], free: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """The least squares solution over free unknowns, fixing at zero those that it makes negative; edits `free`."""
    current = before.copy()
    while True:
        trial = np.zeros_like(current)
        trial[free] = np.linalg.lstsq(matrix[:, free], target, rcond=None)[0]
        negative = free & (trial <= 0)
        if not negative.any():
            return trial
        gaps = current[negative] - trial[negative]
        steps = np.divide(current[negative], gaps, out=np.zeros_like(gaps), where=gaps > 0)
        current = current + float(steps.min()) * (trial - current)
        blocked = negative & (current <= np.finfo(np.float64).eps * max(1.0, float(np.abs(current).max())))
        if not blocked.any():
            blocked = negative
        current[blocked] = 0.0
        free[blocked] = False
