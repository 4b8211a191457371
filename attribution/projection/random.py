"""Counter-based random projections: the same numbers on every machine, device and shape.

An entry is a pure function of (seed, group, side, row, column), so no generator state has to be kept or replayed, and a
wider or taller matrix agrees with a smaller one where they overlap.
"""

from __future__ import annotations

import hashlib
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

PROJECTION_VERSION = 1
"""Part of every index id. Raise it whenever an entry changes: saved indexes must never mix with new numbers."""

ProjectionSide = Literal["outputs", "inputs"]

_INCREMENT = np.uint64(0x9E3779B97F4A7C15)
_FIRST_MULTIPLIER = np.uint64(0xBF58476D1CE4E5B9)
_SECOND_MULTIPLIER = np.uint64(0x94D049BB133111EB)


def projection_matrix(
    rows: int,
    columns: int,
    *,
    seed: int,
    group: str,
    side: ProjectionSide,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """A Rademacher matrix P of shape (rows, columns) with entries ±1/√columns, so that E[P Pᵀ] = I.

    Inner products of projected vectors therefore have the mean of the exact ones. The signs do not depend on the shape.
    """
    positions = np.arange(rows, dtype=np.uint64)[:, None] << np.uint64(32) | np.arange(columns, dtype=np.uint64)
    mixed = _mix(_mix(positions + _INCREMENT) ^ _key(seed, group, side))
    signs = (mixed >> np.uint64(63)).astype(np.float64) * 2 - 1
    return torch.from_numpy(signs / np.sqrt(columns)).to(dtype)


def _key(seed: int, group: str, side: ProjectionSide) -> np.uint64:
    name = f"{PROJECTION_VERSION}\n{seed}\n{side}\n{group}"
    return np.uint64(int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little"))


def _mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    # The SplitMix64 finaliser (Steele, Lea and Flood, OOPSLA 2014); unsigned arithmetic wraps by design.
    values = (values ^ (values >> np.uint64(30))) * _FIRST_MULTIPLIER
    values = (values ^ (values >> np.uint64(27))) * _SECOND_MULTIPLIER
    mixed: NDArray[np.uint64] = values ^ (values >> np.uint64(31))
    return mixed
