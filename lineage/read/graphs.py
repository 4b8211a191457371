"""A closure with all its edges, not only the way by which each node was first reached: what a picture needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import duckdb
import pyarrow as pa

from gradtrail.lineage.read.answers import LineageNode

_REACHED = "reached"


@dataclass(frozen=True)
class LineageEdge:
    """From a thing to what it depends on, both by kind and id."""

    from_kind: str
    from_id: str
    relation: str
    to_kind: str
    to_id: str


def edges_among(connection: duckdb.DuckDBPyConnection, nodes: Sequence[LineageNode]) -> list[LineageEdge]:
    """Every edge of the graph between two of the nodes, in one order."""
    columns = {"kind": [node.kind for node in nodes], "node_id": [node.node_id for node in nodes]}
    connection.register(
        _REACHED, pa.table(columns, schema=pa.schema([("kind", pa.string()), ("node_id", pa.string())]))
    )
    query = """
        SELECT DISTINCT from_kind, from_id, relation, to_kind, to_id FROM edge
        SEMI JOIN reached AS user_node ON user_node.kind = from_kind AND user_node.node_id = from_id
        SEMI JOIN reached AS used_node ON used_node.kind = to_kind AND used_node.node_id = to_id
        ORDER BY ALL"""
    found = connection.execute(query).fetchall()
    connection.unregister(_REACHED)
    return [LineageEdge(*row) for row in found]
