"""A lineage graph as a picture: data flows from left to right, from source and licence to the output and its report.

Each kind has its column. What lies between the examples and the output on the way of fact (dataset version, run,
checkpoint) is drawn in a lane below, so that the measured influence of examples on the output has the room above.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from statistics import fmean

from gradtrail.reports.model import ExampleCard, OutputSection

COLUMNS = (
    ("source", "licence"),
    ("example",),
    ("dataset_version",),
    ("run",),
    ("checkpoint",),
    ("model_version", "index", "weighting"),
    ("output",),
    ("audit",),
    ("report",),
)
LANE_BELOW = {"dataset_version", "run", "checkpoint", "model_version", "index", "weighting"}
INFLUENCE = "influenced_by"
MOST_IN_COLUMN = 14
PROPONENTS, OPPONENTS = 5, 3
BOX_WIDTH, BOX_HEIGHT, GAP, BETWEEN = 134, 38, 10, 48
TITLE_HEIGHT = 24
_LONGEST_LABEL = 19
_SWEEPS = 4
_WIDEST_LINE = 5.0


@dataclass(frozen=True)
class GraphNode:
    """A thing of the ledger; `kind` and `identifier` together name it."""

    kind: str
    identifier: str
    label: str
    detail: str = ""
    key: tuple[str, str] = field(init=False)
    """What edges refer to."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "key", (self.kind, self.identifier))


@dataclass(frozen=True)
class GraphEdge:
    """From what depends to what it depends on; `strength` of an influence is negative for an opponent."""

    start: tuple[str, str]
    end: tuple[str, str]
    relation: str
    strength: float | None = None


@dataclass(frozen=True)
class Box:
    """A node with its place; `text` is its label, shortened to fit."""

    node: GraphNode
    x: float
    y: float
    text: str


@dataclass(frozen=True)
class Line:
    """An edge as an SVG path. `style` is fact, proponent or opponent; a fact has no title, for its columns name it."""

    path: str
    style: str
    width: float
    title: str


@dataclass(frozen=True)
class Drawing:
    """A graph ready for the page; `titles` are (x, text) above the columns, `left_out` counts nodes without a box."""

    width: float
    height: float
    boxes: tuple[Box, ...]
    lines: tuple[Line, ...]
    titles: tuple[tuple[float, str], ...]
    left_out: int

    @property
    def facts(self) -> str:
        """All recorded facts as one SVG path."""
        return "".join(line.path for line in self.lines if line.style == "fact")

    @property
    def influences(self) -> tuple[Line, ...]:
        """The measured influences, each drawn as wide as it is strong."""
        return tuple(line for line in self.lines if line.style != "fact")


def drawing_of_output(section: OutputSection) -> Drawing | None:
    """The way of one output: its strongest examples with source and licence, and the chain to its checkpoint."""
    chain = {step.kind: GraphNode(step.kind, step.identifier, step.label, step.detail) for step in section.lineage}
    cards = [*section.proponents[:PROPONENTS], *section.opponents[:OPPONENTS]]
    if "checkpoint" not in chain or not cards:
        return None
    output = GraphNode("output", section.output.output_id, section.output.output_id)
    nodes, edges = [output], []
    for card in cards:
        example = GraphNode("example", card.example_id, card.example_id, f"{card.side} {card.rank}")
        nodes.append(example)
        edges.append(GraphEdge(output.key, example.key, INFLUENCE, card.score))
        edges.append(GraphEdge(chain["dataset_version"].key, example.key, "contains"))
        nodes += _origins(card)
        edges += [GraphEdge(example.key, origin.key, f"from {origin.kind}") for origin in _origins(card)]
    dataset, run, checkpoint = (chain[kind] for kind in ("dataset_version", "run", "checkpoint"))
    nodes += [dataset, run, checkpoint]
    edges += [
        GraphEdge(run.key, dataset.key, "trained_on"),
        GraphEdge(checkpoint.key, run.key, "written_by"),
        GraphEdge(output.key, checkpoint.key, "produced_by"),
    ]
    return draw(nodes, edges)


def draw(nodes: Iterable[GraphNode], edges: Sequence[GraphEdge]) -> Drawing:
    """Place nodes in columns, each ordered so that lines cross little. The same graph gives the same picture."""
    distinct = {node.key: node for node in nodes}
    columns = [[node for node in distinct.values() if node.kind in kinds] for kinds in COLUMNS]
    ordered = _ordered([column for column in columns if column], edges)
    shown = [column[:MOST_IN_COLUMN] for column in ordered]
    has_lane = any(edge.relation == INFLUENCE for edge in edges)
    upper = [len(column) for column in shown if not (has_lane and column[0].kind in LANE_BELOW)]
    height = _column_height(max(upper, default=1))
    lane = _column_height(max((len(column) for column in shown if column[0].kind in LANE_BELOW), default=0))
    boxes: dict[tuple[str, str], Box] = {}
    for place, column in enumerate(shown):
        below = has_lane and column[0].kind in LANE_BELOW
        top = TITLE_HEIGHT + (height + GAP if below else (height - _column_height(len(column))) / 2)
        for row, node in enumerate(column):
            x, y = place * (BOX_WIDTH + BETWEEN), top + row * (BOX_HEIGHT + GAP)
            boxes[node.key] = Box(node, x, y, _shortened(node.label))
    strongest = max((abs(edge.strength) for edge in edges if edge.strength), default=1.0)
    return Drawing(
        width=len(shown) * (BOX_WIDTH + BETWEEN) - BETWEEN,
        height=TITLE_HEIGHT + height + (GAP + lane if has_lane and lane else 0),
        boxes=tuple(boxes.values()),
        lines=tuple(_line(edge, boxes, strongest) for edge in edges if edge.start in boxes and edge.end in boxes),
        titles=tuple((place * (BOX_WIDTH + BETWEEN), _title(column)) for place, column in enumerate(shown)),
        left_out=sum(map(len, ordered)) - len(boxes),
    )


def _origins(card: ExampleCard) -> list[GraphNode]:
    values = {kind: card.attributes.get(kind, "") for kind in ("source", "licence")}
    return [GraphNode(kind, value, value) for kind, value in values.items() if value]


def _ordered(columns: list[list[GraphNode]], edges: Sequence[GraphEdge]) -> list[list[GraphNode]]:
    """Each column by the mean place of its neighbours in the others, a few times in both directions."""
    neighbours: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for edge in edges:
        neighbours.setdefault(edge.start, []).append(edge.end)
        neighbours.setdefault(edge.end, []).append(edge.start)
    for sweep in range(_SWEEPS):
        place = {node.key: row / len(column) for column in columns for row, node in enumerate(column)}
        order = range(len(columns)) if sweep % 2 == 0 else reversed(range(len(columns)))
        for number in order:
            columns[number] = sorted(columns[number], key=lambda node: _mean_place(node, neighbours, place))
            place |= {node.key: row / len(columns[number]) for row, node in enumerate(columns[number])}
    return columns


def _mean_place(
    node: GraphNode,
    neighbours: Mapping[tuple[str, str], Sequence[tuple[str, str]]],
    place: Mapping[tuple[str, str], float],
) -> float:
    known = [place[key] for key in neighbours.get(node.key, ()) if key in place]
    return fmean(known) if known else place[node.key]


def _column_height(count: int) -> float:
    return max(count * (BOX_HEIGHT + GAP) - GAP, 0)


def _line(edge: GraphEdge, boxes: Mapping[tuple[str, str], Box], strongest: float) -> Line:
    """From the right side of what is used to the left side of what uses it; within a column, around the right side."""
    used, user = boxes[edge.end], boxes[edge.start]
    path = _curve(used.x + BOX_WIDTH, used.y + BOX_HEIGHT / 2, user.x, user.y + BOX_HEIGHT / 2)
    if edge.relation != INFLUENCE:
        return Line(path, "fact", 1.2, "")
    style = "opponent" if edge.strength is not None and edge.strength < 0 else "proponent"
    width = 1 + (_WIDEST_LINE - 1) * abs(edge.strength or 0.0) / strongest
    said = f"{style}, score {edge.strength:.4g}" if edge.strength is not None else style
    return Line(path, style, round(width, 2), f"{used.node.label}: {said}")


@lru_cache(maxsize=4096)
def _curve(x1: float, y1: float, x2: float, y2: float) -> str:
    """An S from one point to the other; drawings of outputs have most of theirs in common."""
    bend = max((x2 - x1) / 2, BETWEEN / 2)
    return f"M{x1:g} {y1:g}C{x1 + bend:g} {y1:g} {x2 - bend:g} {y2:g} {x2:g} {y2:g}"


def _title(column: Sequence[GraphNode]) -> str:
    kinds = dict.fromkeys(node.kind for node in column)
    return " and ".join(kind.replace("_", " ") for kind in kinds)


def _shortened(label: str) -> str:
    if len(label) <= _LONGEST_LABEL:
        return label
    keep = (_LONGEST_LABEL - 1) // 2
    return f"{label[:keep]}…{label[-keep:]}"
