"""Sets of examples to leave out: random halves or other shares, and single examples; the same again for a seed."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil

import numpy as np

from gradtrail.errors import UsageError


def random_halves(example_ids: Sequence[str], count: int, seed: int = 0) -> list[frozenset[str]]:
    """`count` random halves to leave out; the first ones are the same however many are asked for.

    Raises:
        UsageError: for fewer than two examples.
    """
    if len(example_ids) < 2:  # noqa: PLR2004 (half of one)
        raise UsageError(f"{len(example_ids)} examples have no halves.", "Give at least two.")
    return random_parts(example_ids, count, 0.5, seed)


def random_parts(example_ids: Sequence[str], count: int, share: float, seed: int = 0) -> list[frozenset[str]]:
    """`count` random sets of ⌈share × examples⌉ examples to leave out; the rest is a subset to train on.

    Raises:
        UsageError: when a set, or what is left, would be empty.
    """
    size = ceil(share * len(example_ids))
    if not 0 < size < len(example_ids):
        raise UsageError(
            f"A share of {share:g} of {len(example_ids)} examples to leave out.",
            "Choose a share that leaves some out and keeps some.",
        )
    ids = np.asarray(example_ids, dtype=object)
    return [
        frozenset(np.random.default_rng([seed, number]).choice(ids, size=size, replace=False))
        for number in range(count)
    ]


def single_examples(example_ids: Sequence[str], count: int | None = None, seed: int = 0) -> list[frozenset[str]]:
    """Sets of one example each, to leave out: all in order, or `count` in an order drawn at random.

    The first ones are the same however many are asked for.
    """
    if count is None:
        return [frozenset([example_id]) for example_id in example_ids]
    order = np.random.default_rng(seed).permutation(len(example_ids))[:count]
    return [frozenset([example_ids[position]]) for position in order.tolist()]
