"""Walking the lineage graph: from a text to a node, and from a node to all it depends on or that depends on it.

The closures themselves are the table macros `upstream` and `downstream` in `schema/002_views.sql`.
"""

from __future__ import annotations

import duckdb

from gradtrail.errors import NotFoundError, UsageError
from gradtrail.lineage.records import LineageNode

SHORTEST_PREFIX = 6

_UNBOUNDED = 1_000_000

_UPSTREAM = """
    SELECT node_id, kind, label, depth, relation, parent, parent_kind
    FROM upstream(?, start_kind := ?, max_depth := ?, members := ?)
    JOIN lineage_node USING (kind, node_id)
    ORDER BY depth, kind, node_id"""
_DOWNSTREAM = """
    SELECT node_id, kind, label, depth, relation, parent, parent_kind
    FROM downstream(?, start_kind := ?, max_depth := ?)
    JOIN lineage_node USING (kind, node_id)
    ORDER BY depth, kind, node_id"""


def resolve(connection: duckdb.DuckDBPyConnection, text: str) -> tuple[str, str]:
    """The kind and full id that `text` names: an id, `kind:id`, or a unique prefix of at least 6 characters.

    Raises:
        NotFoundError: nothing has that id; names close matches.
        UsageError: several things have it.
    """
    exact = """
        SELECT kind, id FROM lineage_name WHERE id = ?
        UNION SELECT kind, node_id FROM lineage_node WHERE node_id = ?"""
    found = connection.execute(exact, [text, text]).fetchall()
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
    connection: duckdb.DuckDBPyConnection, node_id: str, *, depth: int | None = None, members: bool = False
) -> list[LineageNode]:
    """What a node depends on, itself first, by depth, kind and id.

    The examples of a dataset version are listed only when it is the start node, or with `members`.

    Args:
        connection: on the ledger or its snapshot.
        node_id: whatever `resolve` understands.
        depth: the most edges to follow; None for all.
        members: follow every dataset version to all its examples.

    Raises:
        NotFoundError: nothing has that id.
    """
    return _walk(connection, _UPSTREAM, node_id, depth, [members])


def downstream(connection: duckdb.DuckDBPyConnection, node_id: str, *, depth: int | None = None) -> list[LineageNode]:
    """What depends on a node, itself first, by depth, kind and id; see `upstream`."""
    return _walk(connection, _DOWNSTREAM, node_id, depth, [])


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
    connection: duckdb.DuckDBPyConnection, query: str, text: str, depth: int | None, options: list[bool]
) -> list[LineageNode]:
    kind, identifier = resolve(connection, text)
    parameters = [identifier, kind, _UNBOUNDED if depth is None else depth, *options]
    return [LineageNode(*row) for row in connection.execute(query, parameters).fetchall()]
