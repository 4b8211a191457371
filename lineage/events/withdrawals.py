"""Withdrawals: which examples somebody took back, and which outputs, audits and model versions they had touched."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import duckdb

from gradtrail.digests import sha256_json
from gradtrail.errors import NotFoundError, UsageError
from gradtrail.lineage.chain.appending import append, keep_new
from gradtrail.lineage.chain.rows import rows_of
from gradtrail.lineage.ledger.writing import Ledger
from gradtrail.lineage.read.reach import EXAMPLE_ID, blast_radius

WITHDRAWAL = "withdrawal"


@dataclass(frozen=True)
class WithdrawalRequest:
    """What is withdrawn: every example with a value of an attribute, or single examples.

    Raises:
        UsageError: neither or both are given.
    """

    attribute: str = ""
    value: str = ""
    example_ids: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if bool(self.attribute) == bool(self.example_ids):
            raise UsageError(
                "A withdrawal is about one attribute value or about single examples.",
                "Give --source X, --attribute name=value or --example ID.",
            )


@dataclass(frozen=True)
class Reach:
    """How far withdrawn examples reached, as far as the ledger can tell: their blast radius in short.

    It sees the examples that an audit kept among the strongest of an output or of all its outputs, and, where an
    attribute value is withdrawn, its share in each audit. Weaker influence on single outputs it does not see.

    Attributes:
        examples: the examples, as dataset version and id.
        dataset_version_ids, model_version_ids: those that contain them, and those trained on these.
        output_ids: outputs with one of them among their strongest.
        audit_ids: audits that named one of them, or measured a share of the value.
        largest_share: the largest share of support over one of these audits; None where none was measured.
    """

    examples: tuple[tuple[str, str], ...]
    dataset_version_ids: tuple[str, ...]
    model_version_ids: tuple[str, ...]
    output_ids: tuple[str, ...]
    audit_ids: tuple[str, ...]
    largest_share: float | None


@dataclass(frozen=True)
class Withdrawn:
    """All that was withdrawn so far: values by attribute, and single examples."""

    values: dict[str, frozenset[str]]
    example_ids: frozenset[str]

    @property
    def sha256(self) -> str:
        """Digest of it all; another one means that an audit would find something else."""
        return sha256_json(
            {
                "values": {name: sorted(values) for name, values in self.values.items()},
                "example_ids": sorted(self.example_ids),
            }
        )


def reach_of(connection: duckdb.DuckDBPyConnection, request: WithdrawalRequest) -> Reach:
    """What a withdrawal would concern.

    Raises:
        NotFoundError: no dataset version has such an example.
    """
    examples = _examples(connection, request)
    named = [request.value] if request.attribute else list(request.example_ids)
    touched = blast_radius(connection, request.attribute or EXAMPLE_ID, named)
    measured = [
        each.share
        for each in touched.touched
        if each.kind == "audit" and each.side == "proponent" and each.best_rank is None and each.share is not None
    ]
    ranked = (each.id for each in touched.touched if each.kind == "output" and each.best_rank is not None)
    return Reach(
        examples=tuple(examples),
        dataset_version_ids=tuple(sorted(touched.ids("dataset_version"))),
        model_version_ids=tuple(touched.ids("model_version")),
        output_ids=tuple(sorted(set(ranked))),
        audit_ids=tuple(sorted(touched.ids("audit"))),
        largest_share=max(measured, default=None),
    )


def withdraw(ledger: Ledger, request: WithdrawalRequest, reason: str | None = None) -> tuple[str, bool]:
    """Record a withdrawal with the examples it concerns today; its id, and whether it is new.

    A value of a personal attribute is not written down: its examples are withdrawn one by one.

    Raises:
        NotFoundError: no dataset version has such an example.
    """
    with ledger.transaction() as connection:
        examples = _examples(connection, request)
        if request.attribute and not _is_personal(connection, request):
            said: tuple[str | None, str | None] = (request.attribute, request.value)
            withdrawal_id = sha256_json({"attribute": request.attribute, "value": request.value})
        else:
            said = (None, None)
            withdrawal_id = sha256_json({"example_ids": sorted({each[1] for each in examples})})
        header = rows_of(WITHDRAWAL, [(withdrawal_id, *said, len(examples), reason)])
        concerned = rows_of("withdrawn_example", ((withdrawal_id, *each) for each in examples))
        new = keep_new(connection, header)
        if new.count:
            append(connection, WITHDRAWAL, withdrawal_id, [new, concerned])
        return withdrawal_id, bool(new.count)


def withdrawn(connection: duckdb.DuckDBPyConnection) -> Withdrawn:
    """All that was withdrawn so far."""
    values: dict[str, set[str]] = {}
    query = "SELECT attribute, value FROM withdrawal WHERE attribute IS NOT NULL ORDER BY ALL"
    for attribute, value in connection.execute(query).fetchall():
        values.setdefault(attribute, set()).add(value)
    single = _column(
        connection,
        """SELECT DISTINCT example_id FROM withdrawn_example JOIN withdrawal USING (withdrawal_id)
        WHERE attribute IS NULL""",
    )
    return Withdrawn({name: frozenset(each) for name, each in values.items()}, frozenset(single))


def _examples(connection: duckdb.DuckDBPyConnection, request: WithdrawalRequest) -> list[tuple[str, str]]:
    if request.example_ids:
        query = """
            SELECT dataset_version_id, example_id FROM example
            WHERE example_id IN (SELECT unnest(?)) ORDER BY ALL"""
        found = connection.execute(query, [list(request.example_ids)]).fetchall()
        missing = sorted(set(request.example_ids) - {each[1] for each in found})
    else:
        query = """
            SELECT dataset_version_id, example_id FROM example WHERE attributes[$1] = $2
            UNION SELECT dataset_version_id, example_id FROM personal_attribute WHERE name = $1 AND value = $2
            ORDER BY ALL"""
        found = connection.execute(query, [request.attribute, request.value]).fetchall()
        missing = [] if found else [f"with {request.attribute} {request.value}"]
    if missing:
        raise NotFoundError(
            f"No dataset version in the ledger has the example {missing[0]}.",
            "Write it exactly as it was registered; `gradtrail sql` lists examples and attributes.",
        )
    return [(row[0], row[1]) for row in found]


def _is_personal(connection: duckdb.DuckDBPyConnection, request: WithdrawalRequest) -> bool:
    query = "SELECT 1 FROM personal_attribute WHERE name = ? AND value = ? LIMIT 1"
    return bool(connection.execute(query, [request.attribute, request.value]).fetchall())


def _column(connection: duckdb.DuckDBPyConnection, query: str, parameters: Sequence[object] = ()) -> list[str]:
    return [row[0] for row in connection.execute(query, list(parameters)).fetchall()]
