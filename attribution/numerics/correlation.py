"""Correlations column by column: Spearman with ties by their mean rank, and the cosine of centred columns."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]


def centred(values: Matrix, axis: int) -> Matrix:
    """`values` with their mean along `axis` subtracted."""
    found: Matrix = values - values.mean(axis, keepdims=True)
    return found


def spearmans(left: Matrix, right: Matrix) -> Matrix:
    """Rank correlation of each column of (rows, columns) with its fellow: (columns,); 0 where one is constant."""
    return cosines(ranks(left), ranks(right))


def cosines(left: Matrix, right: Matrix) -> Matrix:
    """Cosine of each centred column with its fellow: (columns,); 0 where one is constant."""
    first, second = centred(left, 0), centred(right, 0)
    norms = np.linalg.norm(first, axis=0) * np.linalg.norm(second, axis=0)
    products: Matrix = (first * second).sum(0)
    found: Matrix = np.divide(products, norms, out=np.zeros_like(products), where=norms > 0)
    return found


def ranks(values: Matrix) -> Matrix:
    """Ranks down each column; equal values share the mean of their ranks."""
    from scipy.stats import rankdata

    found: Matrix = rankdata(values, axis=0)
    return found
