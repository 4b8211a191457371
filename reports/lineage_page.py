"""The lineage of anything in the ledger as one HTML page."""

from __future__ import annotations

from collections.abc import Sequence

from gradtrail import __version__
from gradtrail.lineage.read.answers import LineageNode
from gradtrail.lineage.read.graphs import LineageEdge
from gradtrail.reports.charts.lineage_graph import GraphEdge, GraphNode, draw
from gradtrail.reports.render import environment


def lineage_page(
    identifier: str, nodes: Sequence[LineageNode], edges: Sequence[LineageEdge], *, downstream: bool
) -> str:
    """A page with the graph and the same in a table; nothing has to be fetched, every text is escaped.

    Args:
        identifier: what was asked for.
        nodes: the closure, the nearest first.
        edges: all edges among them.
        downstream: whether the closure goes to what came from the thing.
    """
    drawing = draw(
        [GraphNode(node.kind, node.node_id, node.label) for node in nodes],
        [GraphEdge((edge.from_kind, edge.from_id), (edge.to_kind, edge.to_id), edge.relation) for edge in edges],
    )
    page = environment().get_template("lineage.html")
    return page.render(identifier=identifier, nodes=nodes, drawing=drawing, downstream=downstream, version=__version__)
