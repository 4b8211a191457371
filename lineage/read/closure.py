"""Walking the lineage graph: from a text to a node, and from a node to all it depends on or that depends on it.

The closures themselves are the table macros `upstream_until` and `downstream_until` in `schema/005_questions.sql`.
"""

from __future__ import annotations

import duckdb

from gradtrail.errors import NotFoundError, UsageError
from gradtrail.lineage.read.answers import LineageNode

SHORTEST_PREFIX = 6

_UNBOUNDED = 1_000_000
_NOW = (1 << 63) - 1
"""Above the number of every event."""

_UPSTREAM = """
    SELECT node_id, kind, label, depth, relation, parent, parent_kind
    FROM upstream_until(?, start_kind := ?, max_depth := ?, bound := ?, members := ?)"""
_DOWNSTREAM = """
    SELECT node_id, kind, label, depth, relation, parent, parent_kind
    FROM downstream_until(?, start_kind := ?, max_depth := ?, bound := ?)"""


def last_event(connection: duckdb.DuckDBPyConnection, as_of: str | None) -> int:
    """The event that recorded the audit `as_of`, an id or the beginning of one; for None, above every event.

    Raises:
        NotFoundError: no audit begins so.
        UsageError: several do.
    """
    if as_of is None:
        return _NOW
    query = "SELECT audit_id, event_sequence FROM audit WHERE starts_with(audit_id, ?) ORDER BY audit_id LIMIT 2"
    found = connection.execute(query, [as_of]).fetchall() if as_of else []
    if not found:
        raise NotFoundError(f"There is no audit {as_of!r} in the ledger.", "Look with: gradtrail sql 'FROM audit'.")
    if len(found) > 1:
        raise UsageError(f"More than one audit begins with {as_of}.", f"Give more of it, for example {found[0][0]}.")
    return int(found[0][1])


def resolve(connection: duckdb.DuckDBPyConnection, text: str) -> tuple[str, str]:
    """The kind and full id that `text` names: an id, `kind:id`, or a unique prefix of at least 6 characters.

    Raises:
        NotFoundError: nothing has that id; names close matches.
        UsageError: several things have it.
    """
    exact = """
        SELECT DISTINCT kind, CASE WHEN example_id = $1 THEN example_id ELSE node_id END
        FROM lineage_start($1, NULL, $2)"""
    found = connection.execute(exact, [text, _NOW]).fetchall()
    if not found:
        kind, _, rest = text.partition(":")
        of_kind = "SELECT kind, id FROM lineage_name WHERE kind = ? AND id = ?"
        found = connection.execute(of_kind, [kind, rest]).fetchall()
    if not found and len(text) >= SHORTEST_PREFIX:
        prefixed = "SELECT kind, id FROM lineage_name WHERE starts_with(id, ?) ORDER BY ALL LIMIT 4"
        found = connection.execute(prefixed, [text]).fetchall()
    if not found:
        raise not_found(connection, text)
    if len(found) > 1:
        choices = ", ".join(f"{kind}:{identifier}" for kind, identifier in sorted(found))
        raise UsageError(f"{text} names more than one thing: {choices}.", "Give one of these in full.")
    return found[0][0], found[0][1]


def upstream(
    connection: duckdb.DuckDBPyConnection,
    node_id: str,
    *,
    depth: int | None = None,
    members: bool = False,
    as_of: str | None = None,
) -> list[LineageNode]:
    """What a node depends on, itself first, by depth, kind and id.

    The examples of a dataset version are listed only when it is the start node, or with `members`.

    Args:
        connection: on the ledger or its snapshot.
        node_id: whatever `resolve` understands.
        depth: the most edges to follow; None for all.
        members: follow every dataset version to all its examples.
        as_of: an audit, whose id may be cut short: the graph as it was when that audit was recorded.

    Raises:
        NotFoundError: nothing has that id, or there is no such audit; or what has the id was recorded later than it.
    """
    return _walk(connection, _UPSTREAM, node_id, depth, as_of, [members])


def downstream(
    connection: duckdb.DuckDBPyConnection, node_id: str, *, depth: int | None = None, as_of: str | None = None
) -> list[LineageNode]:
    """What depends on a node, itself first, by depth, kind and id; see `upstream`."""
    return _walk(connection, _DOWNSTREAM, node_id, depth, as_of, [])


def not_found(connection: duckdb.DuckDBPyConnection, text: str) -> NotFoundError:
    """The error for an id nobody has, with the closest ones."""
    query = "SELECT kind, id FROM lineage_name ORDER BY jaro_winkler_similarity(id, ?) DESC, kind, id LIMIT 3"
    close = connection.execute(query, [text]).fetchall()
    nearest = ", ".join(f"{identifier} ({kind.replace('_', ' ')})" for kind, identifier in close)
    return NotFoundError(
        f"Nothing in the ledger has the id {text!r}.",
        f"The closest are: {nearest}." if nearest else "The ledger is empty; run `gradtrail ingest` first.",
    )


def _walk(
    connection: duckdb.DuckDBPyConnection,
    query: str,
    text: str,
    depth: int | None,
    as_of: str | None,
    options: list[bool],
) -> list[LineageNode]:
    kind, identifier = resolve(connection, text)
    bound = last_event(connection, as_of)
    parameters = [identifier, kind, _UNBOUNDED if depth is None else depth, bound, *options]
    nodes = [LineageNode(*row) for row in connection.execute(query, parameters).fetchall()]
    if not nodes:
        raise NotFoundError(
            f"{text} was not in the ledger yet when audit {as_of} was recorded.",
            "Ask without a time, or of a later one.",
        )
    return nodes
