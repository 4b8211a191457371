"""The picture of a lineage: what is drawn, where, and what a page of it says."""

from dataclasses import replace
from html.parser import HTMLParser

import pytest

from gradtrail.lineage.read.answers import LineageNode
from gradtrail.lineage.read.graphs import LineageEdge
from gradtrail.reports.charts.lineage_graph import (
    BETWEEN,
    BOX_WIDTH,
    INFLUENCE,
    MOST_IN_COLUMN,
    OPPONENTS,
    PROPONENTS,
    GraphEdge,
    GraphNode,
    draw,
    drawing_of_output,
)
from gradtrail.reports.lineage_page import lineage_page
from gradtrail.reports.render import render_html


@pytest.fixture
def section(sample_report):
    return sample_report.outputs[0]


def boxes_of(drawing, kind):
    return [box for box in drawing.boxes if box.node.kind == kind]


def test_an_output_is_drawn_with_its_strongest_examples_and_the_whole_chain(section):
    drawing = drawing_of_output(section)
    assert len(boxes_of(drawing, "example")) == PROPONENTS + OPPONENTS
    for kind in ("output", "checkpoint", "run", "dataset_version"):
        assert len(boxes_of(drawing, kind)) == 1
    styles = [line.style for line in drawing.lines]
    assert (styles.count("proponent"), styles.count("opponent")) == (PROPONENTS, OPPONENTS)


def test_data_flows_from_left_to_right(section):
    drawing = drawing_of_output(section)
    place = {box.node.kind: box.x for box in drawing.boxes}
    order = ["source", "example", "dataset_version", "run", "checkpoint", "output"]
    assert sorted(order, key=place.__getitem__) == order
    assert place["source"] == place["licence"]


def test_boxes_do_not_overlap_and_stay_inside(section):
    drawing = drawing_of_output(section)
    spots = {(box.x, box.y) for box in drawing.boxes}
    assert len(spots) == len(drawing.boxes)
    assert all(0 <= box.x <= drawing.width - BOX_WIDTH and 0 <= box.y <= drawing.height for box in drawing.boxes)


def test_a_line_is_as_wide_as_its_influence_is_strong(section):
    drawing = drawing_of_output(section)
    widths = [line.width for line in drawing.lines if line.style == "proponent"]
    assert widths == sorted(widths, reverse=True)
    assert widths[0] == max(line.width for line in drawing.lines)


def test_an_output_without_examples_has_no_drawing(section):
    assert drawing_of_output(replace(section, proponents=(), opponents=())) is None


def test_a_long_column_says_how_much_is_not_drawn():
    examples = [GraphNode("example", f"e{number}", f"e{number}") for number in range(MOST_IN_COLUMN + 6)]
    output = GraphNode("output", "o", "o")
    drawing = draw([output, *examples], [GraphEdge(output.key, node.key, INFLUENCE, 1.0) for node in examples])
    assert drawing.left_out == 6
    assert len(drawing.lines) == MOST_IN_COLUMN


def test_only_columns_with_nodes_take_room():
    drawing = draw([GraphNode("run", "r", "r"), GraphNode("checkpoint", "c", "c")], [])
    assert drawing.width == 2 * BOX_WIDTH + BETWEEN


def test_the_report_shows_the_graph_of_each_output(sample_report):
    page = render_html(sample_report)
    assert page.count('class="graph"') == len(sample_report.outputs)
    assert "<script>alert" not in page


def test_a_page_of_lineage_says_the_same_in_words(script_text):
    nodes = [
        LineageNode("o:1", "output", "o:1", 0, "", "", ""),
        LineageNode(script_text, "checkpoint", script_text, 1, "produced_by", "o:1", "output"),
    ]
    edges = [LineageEdge("output", "o:1", "produced_by", "checkpoint", script_text)]
    page = lineage_page("o:1", nodes, edges, downstream=False)
    assert script_text not in page
    cells: list[str] = []

    class Cells(HTMLParser):
        def handle_data(self, data: str) -> None:
            cells.append(data)

    Cells().feed(page)
    assert "produced by" in cells
    assert "2 things of the ledger, as its published snapshot has them." in " ".join(cells)
