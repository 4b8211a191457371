"""The blast radius of training data: what some examples touched, and what nobody can say about it.

The answers are the table macros `blast_radius_until` and `unseen_until` in `schema/005_questions.sql`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import duckdb

from gradtrail.errors import NotFoundError
from gradtrail.lineage.read.closure import last_event
from gradtrail.nouns import Side

EXAMPLE_ID = "example_id"
"""Stands for the examples' own ids where the name of an attribute is asked."""

TouchedKind = Literal["dataset_version", "model_version", "audit", "output", "report"]


@dataclass(frozen=True)
class Touched:
    """One thing that the examples touched, and by what this is known.

    `examples` counts those behind it; `best_rank` is the best place of one of them; `share` is their part of the
    influence, 0 to 1; each None where the evidence does not say. `audit_id` is the audit that measured it.
    """

    kind: TouchedKind
    id: str
    evidence: str
    side: Side | None
    examples: int | None
    best_rank: int | None
    share: float | None
    audit_id: str | None


@dataclass(frozen=True)
class Unseen:
    """Something the blast radius cannot see: how many of what, and what that means."""

    what: str
    number: int
    meaning: str


@dataclass(frozen=True)
class BlastRadius:
    """What the examples whose `attribute` is one of `values` touched, and what is unseen."""

    attribute: str
    values: tuple[str, ...]
    examples: int
    touched: tuple[Touched, ...]
    unseen: tuple[Unseen, ...]

    def ids(self, kind: TouchedKind) -> list[str]:
        """The ids of one kind, each once, in the order of `touched`."""
        return list(dict.fromkeys(each.id for each in self.touched if each.kind == kind))


def blast_radius(
    connection: duckdb.DuckDBPyConnection, attribute: str, values: Sequence[str], *, as_of: str | None = None
) -> BlastRadius:
    """What every example with one of `values` touched.

    Args:
        connection: on the ledger or its snapshot.
        attribute: the name of an attribute, for example `source`; `example_id` for the examples' own ids.
        values: at least one.
        as_of: an audit, whose id may be cut short: as the ledger was when that audit was recorded.

    Raises:
        NotFoundError: no example has such a value, or there is no such audit.
    """
    asked = [attribute, list(values), last_event(connection, as_of)]
    counting = "SELECT count(DISTINCT example_id) FROM examples_with(?, ?) WHERE event_sequence <= ?"
    examples = int(connection.execute(counting, asked).fetchall()[0][0])
    if not examples:
        raise NotFoundError(
            f"No example in the ledger has {attribute} {', '.join(map(repr, values))}.",
            "Look at the table example with gradtrail sql: its column attributes holds source, licence and more.",
        )
    touched = connection.execute("FROM blast_radius_until(?, ?, ?)", asked).fetchall()
    unseen = connection.execute("FROM unseen_until(?, ?, ?)", asked).fetchall()
    return BlastRadius(
        attribute,
        tuple(values),
        examples,
        tuple(Touched(*row) for row in touched),
        tuple(Unseen(*row) for row in unseen),
    )
