"""The index in parts: the newest audits on a page that is written anew after each audit, older ones on pages that stay.

Without parts the cost of an audit, and the size of the page, would grow with every audit that was ever made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from gradtrail.addresses import INDEX_PAGE

AUDITS_A_PART = 200
"""Audits on a page of older ones. The index has the newest, at least as many and less than twice as many."""


class Place(Protocol):
    """An audit, told from others."""

    @property
    def audit_id(self) -> str:
        """Its id."""

    @property
    def model(self) -> str:
        """The model that it is about."""

    @property
    def recorded_at(self) -> datetime:
        """When the ledger took it."""


@dataclass(frozen=True)
class IndexPart:
    """Audits that share a page.

    Attributes:
        name: of the page.
        first: number of the first of them, over all models in the order they were recorded, from 1.
        places: the audits from there on.
        also: ids of earlier audits that the page has as well.
    """

    name: str
    first: int
    places: tuple[Place, ...]
    also: tuple[str, ...] = ()

    @property
    def last(self) -> int:
        """Number of the last of them; one less than `first` where there is none."""
        return self.first + len(self.places) - 1

    @property
    def since(self) -> datetime:
        """When the first was recorded."""
        return self.places[0].recorded_at

    @property
    def until(self) -> datetime:
        """When the last was recorded."""
        return self.places[-1].recorded_at

    @property
    def audit_ids(self) -> tuple[str, ...]:
        """All that the page shows."""
        return (*self.also, *(place.audit_id for place in self.places))


def index_parts(places: Sequence[Place], size: int = AUDITS_A_PART) -> tuple[list[IndexPart], IndexPart]:
    """The pages of older audits, the oldest first, and the index itself.

    The index also has the newest audit of each model that was last audited before its first one.
    """
    older = max(len(places) // size - 1, 0) * size
    parts = [
        IndexPart(f"audits-{start + 1}-{start + size}.html", start + 1, tuple(places[start : start + size]))
        for start in range(0, older, size)
    ]
    newest = tuple(places[older:])
    shown = {place.model for place in newest}
    elsewhere = {place.model: place.audit_id for place in places[:older] if place.model not in shown}
    return parts, IndexPart(INDEX_PAGE, older + 1, newest, tuple(elsewhere.values()))
