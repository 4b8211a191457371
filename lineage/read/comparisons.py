"""Two audits side by side; the answer is the table macro `compare_audits` in `schema/005_questions.sql`."""

from __future__ import annotations

from dataclasses import dataclass

import duckdb

from gradtrail.errors import NotFoundError, UsageError
from gradtrail.lineage.read.closure import SHORTEST_PREFIX


@dataclass(frozen=True)
class Compared:
    """One line of a comparison: the value in either audit as text, None where it has none.

    `difference` is b − a for figures; `same` says whether both agree.
    """

    aspect: str
    name: str
    a: str | None
    b: str | None
    difference: float | None
    same: bool


@dataclass(frozen=True)
class Comparison:
    """Two audits, by full id, and every line in which they can be compared."""

    a: str
    b: str
    lines: tuple[Compared, ...]


def compare_audits(connection: duckdb.DuckDBPyConnection, a: str, b: str) -> Comparison:
    """Compare two audits, whose ids may be cut short.

    Raises:
        NotFoundError: there is no such audit.
        UsageError: more than one audit begins so.
    """
    first, second = _audit_id(connection, a), _audit_id(connection, b)
    rows = connection.execute("FROM compare_audits(?, ?)", [first, second]).fetchall()
    return Comparison(first, second, tuple(Compared(*row) for row in rows))


def _audit_id(connection: duckdb.DuckDBPyConnection, text: str) -> str:
    query = "SELECT audit_id FROM audit WHERE starts_with(audit_id, ?) ORDER BY audit_id LIMIT 2"
    found = connection.execute(query, [text]).fetchall() if len(text) >= SHORTEST_PREFIX else []
    if not found:
        raise NotFoundError(
            f"There is no audit {text!r} in the ledger.",
            f"Give its id, or at least {SHORTEST_PREFIX} characters of it; gradtrail sql 'FROM audit' lists them.",
        )
    if len(found) > 1:
        raise UsageError(f"More than one audit begins with {text}.", f"Give more of it, for example {found[0][0]}.")
    return str(found[0][0])
