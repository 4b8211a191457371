"""Fixtures of the storage room: small deterministic gradients, so that a row of one id is the same in every process."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest

from gradtrail.storage.gradients.store import GradientStore, IndexTable

INDEX_ID = "1f" * 32
SHAPE = {"dimension": 8, "group_count": 3}


def gradient_rows_of(numbers: Iterable[int]) -> dict[str, Any]:
    numbers = list(numbers)
    values = np.array([np.random.default_rng(number).normal(size=8 + 1 + 3) for number in numbers]).reshape(-1, 12)
    return {
        "example_ids": [f"example-{number}" for number in numbers],
        "content_sha256": [hashlib.sha256(str(number).encode()).hexdigest() for number in numbers],
        "vectors": values[:, :8].astype(np.float32),
        "losses": np.abs(values[:, 8]),
        "squared_norms": values[:, 9:] ** 2,
        "attributes": {
            "source": [f"source {number % 3}" for number in numbers],
            "licence": [["CC-BY", None][number % 2] for number in numbers],
        },
    }


@pytest.fixture
def gradient_rows() -> Callable[[Iterable[int]], dict[str, Any]]:
    """Arguments of `append` for examples of these numbers: 8 dimensions, 3 groups, two attributes."""
    return gradient_rows_of


@pytest.fixture
def gradient_store(tmp_path) -> GradientStore:
    return GradientStore(str(tmp_path / "gradients"))


@pytest.fixture
def open_gradients(gradient_store) -> Callable[[], IndexTable]:
    """Opens the one index of the test's store, each time with a handle of its own."""

    def opened() -> IndexTable:
        store = GradientStore(gradient_store.uri)
        return store.open_index(INDEX_ID, attribute_names=["source", "licence"], config={"seed": 1}, **SHAPE)

    return opened
