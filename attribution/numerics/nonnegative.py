"""Least squares under x ≥ 0, by SciPy's active-set method (Lawson and Hanson, Solving Least Squares Problems, 1974)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gradtrail.errors import DataError

_MOST_TURNS = 10_000


def nonnegative_least_squares(matrix: NDArray[np.float64], target: NDArray[np.float64]) -> NDArray[np.float64]:
    """The x ≥ 0 (columns,) that minimises ‖matrix x − target‖ for a matrix (rows, columns).

    It is the only minimiser where the columns are linearly independent. SciPy says which unknowns are above zero;
    ordinary least squares over those gives the last digits, from which ids of fitted weightings have always been made.

    Raises:
        DataError: for values that are not finite, shapes that do not fit, or a problem too ill-conditioned to settle.
    """
    if matrix.ndim != 2 or target.shape != matrix.shape[:1]:  # noqa: PLR2004 (a matrix has two axes)
        raise DataError(f"A matrix of shape {matrix.shape} for a target of shape {target.shape}.", "Give equal rows.")
    if not (np.isfinite(matrix).all() and np.isfinite(target).all()):
        raise DataError("Least squares with values that are not finite.", "Look for a diverged measurement.")
    count = matrix.shape[1]
    if not matrix.size:  # SciPy 1.17 ends the process where there are no columns, and answers noise where no rows are
        return np.zeros(count)
    from scipy.optimize import nnls

    try:
        found: NDArray[np.float64] = nnls(matrix, target, maxiter=_MOST_TURNS)[0]
    except RuntimeError as fault:
        raise DataError(
            f"Least squares with {count} unknowns ≥ 0 did not settle: the columns nearly depend on each other.",
            "Fit fewer groups (a coarser level), or a larger ridge.",
        ) from fault
    above = found > 0
    exact = np.zeros(count)
    exact[above] = np.linalg.lstsq(matrix[:, above], target, rcond=None)[0]
    return exact if (exact >= 0).all() else found
