"""Finished runs of training, a small file each, so that a measurement that was stopped takes them up again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gradtrail.storage.files.atomic import replacing


class KeptRuns:
    """The losses of finished runs in one folder, under seed and number of the left-out set; None is all data.

    `without` begins the names of the runs that left something out, so that two kinds of left-out sets can share a
    folder, and with it their runs on all data.
    """

    def __init__(self, folder: Path, without: str = "without") -> None:
        self._folder = folder
        self._without = without

    def get(self, key: tuple[int, int | None]) -> NDArray[np.float64] | None:
        """The losses of a run, or None where it was not finished."""
        path = self._path(key)
        if not path.is_file():
            return None
        found: NDArray[np.float64] = np.load(path, allow_pickle=False)
        return found

    def put(self, key: tuple[int, int | None], losses: NDArray[np.float64]) -> None:
        """Keep the losses of a finished run."""
        with replacing(self._path(key)) as temporary, temporary.open("wb") as stream:
            np.save(stream, losses, allow_pickle=False)

    def _path(self, key: tuple[int, int | None]) -> Path:
        seed, number = key
        return self._folder / f"seed-{seed}-{'all' if number is None else f'{self._without}-{number:03d}'}.npy"
