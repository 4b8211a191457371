"""What a peer's race hands to the worker, and the reasons for which it cannot run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


class CannotDoError(RuntimeError):
    """The peer has no way to do this model; the message says why."""


@dataclass(frozen=True)
class Prepared:
    """One timed pass over `examples` examples, and what of the model its features cover."""

    run: Callable[[], None]
    examples: int
    covers: str
