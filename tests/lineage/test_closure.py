from __future__ import annotations

from collections.abc import Iterator

import duckdb
import networkx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gradtrail.errors import NotFoundError, UsageError
from gradtrail.lineage import queries
from gradtrail.lineage.ledger import Ledger
from gradtrail.lineage.migrations import schema_files

NODES = st.tuples(st.sampled_from(["output", "example", "dataset_version"]), st.sampled_from("abcde"))
EDGES = st.lists(st.tuples(NODES, NODES), max_size=25)


@pytest.fixture(scope="module")
def bare_macros() -> Iterator[duckdb.DuckDBPyConnection]:
    """The macros of the schema over a plain edge table instead of the view."""
    views = next(each.text for each in schema_files() if "CREATE MACRO upstream" in each.text)
    with duckdb.connect(":memory:") as connection:
        connection.execute("CREATE TABLE edge (from_kind TEXT, from_id TEXT, relation TEXT, to_kind TEXT, to_id TEXT)")
        connection.execute("CREATE TABLE lineage_node (kind TEXT, node_id TEXT, label TEXT)")
        connection.execute(views[views.index("CREATE MACRO upstream") :])
        yield connection


def _load(connection: duckdb.DuckDBPyConnection, graph: networkx.DiGraph) -> None:
    connection.execute("DELETE FROM edge; DELETE FROM lineage_node")
    for kind, node_id in graph.nodes:
        connection.execute("INSERT INTO lineage_node VALUES (?, ?, ?)", [kind, node_id, f"label of {node_id}"])
    for (from_kind, from_id), (to_kind, to_id) in graph.edges:
        connection.execute("INSERT INTO edge VALUES (?, ?, 'needs', ?, ?)", [from_kind, from_id, to_kind, to_id])


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(start=NODES, edges=EDGES, bound=st.integers(0, 4))
def test_closures_are_those_of_networkx_on_any_graph_with_cycles(
    bare_macros: duckdb.DuckDBPyConnection,
    start: tuple[str, str],
    edges: list[tuple[tuple[str, str], tuple[str, str]]],
    bound: int,
) -> None:
    graph = networkx.DiGraph(edges)
    graph.add_node(start)
    _load(bare_macros, graph)
    for macro, walked in (("upstream", graph), ("downstream", graph.reverse())):
        expected = networkx.single_source_shortest_path_length(walked, start)
        for depth, reached in ((100, expected), (bound, {n: d for n, d in expected.items() if d <= bound})):
            found = bare_macros.execute(
                f"SELECT kind, node_id, depth, parent_kind, parent FROM {macro}(?, start_kind := ?, max_depth := ?)",  # noqa: S608 - one of two literals
                [start[1], start[0], depth],
            ).fetchall()
            assert {(kind, node): far for kind, node, far, _, _ in found} == dict(reached)
            assert len(found) == len(reached)
            for kind, node, far, parent_kind, parent in found:
                if far:
                    assert walked.has_edge((parent_kind, parent), (kind, node))
                    assert expected[(parent_kind, parent)] == far - 1


def _kinds(nodes: list[queries.LineageNode]) -> dict[str, int]:
    return {node.kind: node.depth for node in nodes}


def test_an_output_leads_up_to_licence_run_and_checkpoint_but_not_to_all_examples(story, story_ledger: Ledger) -> None:
    with story_ledger.read() as connection:
        nodes = queries.upstream(connection, "inbox:0")
        everything = queries.upstream(connection, "inbox:0", members=True)
    assert nodes[0] == queries.LineageNode("inbox:0", "output", "inbox:0", 0, "", "", "")
    assert _kinds(nodes) == {
        "output": 0,
        "example": 1,
        "model_version": 1,
        "checkpoint": 2,
        "source": 2,
        "licence": 2,
        "run": 3,
        "dataset_version": 4,
    }
    assert {node.label for node in nodes if node.kind == "example"} == {f"train-{n:02d}" for n in range(6)}
    assert sum(node.kind == "example" for node in everything) == len(story.manifest)


def test_an_audit_leads_up_to_its_index_and_a_report_to_its_audit(story, story_ledger: Ledger) -> None:
    with story_ledger.read() as connection:
        nodes = queries.upstream(connection, "ab" * 32)
    found = {(node.kind, node.relation) for node in nodes}
    assert {("report", ""), ("audit", "reports"), ("index", "uses"), ("weighting", "weighted_by")} <= found
    assert {("output", "examines"), ("checkpoint", "taken_at"), ("dataset_version", "taken_over")} <= found


def test_a_dataset_version_lists_its_examples(story, story_ledger: Ledger) -> None:
    with story_ledger.read() as connection:
        nodes = queries.upstream(connection, story.dataset.dataset_version_id)
    assert [node.label for node in nodes if node.relation == "contains"] == [row.example_id for row in story.manifest]


def test_a_licence_leads_down_to_the_outputs_and_reports_it_reached(story, story_ledger: Ledger) -> None:
    with story_ledger.read() as connection:
        nodes = queries.downstream(connection, "licence:unknown")
        one_step = queries.downstream(connection, "licence:unknown", depth=1)
    assert {node.label for node in one_step} == {"unknown", "train-02", "train-05", "train-08", "train-11"}
    assert {"output", "audit", "report", "dataset_version", "run", "checkpoint", "model_version"} <= set(_kinds(nodes))


def test_an_example_is_followed_in_every_dataset_version_and_each_keeps_its_own_licence(
    story, story_ledger: Ledger
) -> None:
    from dataclasses import replace

    relicensed = [replace(row, attributes={"licence": "withdrawn"}) for row in story.manifest]
    later = replace(story.dataset, dataset_version_id="d2" * 32)
    story_ledger.record_dataset_version(later, relicensed)
    with story_ledger.read() as connection:
        of_output = {node.node_id for node in queries.upstream(connection, "inbox:0") if node.kind == "licence"}
        of_example = {node.node_id for node in queries.upstream(connection, "train-00") if node.kind == "licence"}
        starts = [node.node_id for node in queries.downstream(connection, "train-00", depth=0)]
    assert of_output == {"CC-BY", "MIT", "unknown"}
    assert of_example == {"CC-BY", "withdrawn"}
    assert starts == [f"train-00@{'d1' * 32}", f"train-00@{'d2' * 32}"]


def test_an_id_may_be_given_in_full_by_kind_or_by_a_unique_prefix(story, story_ledger: Ledger) -> None:
    with story_ledger.read() as connection:
        assert queries.resolve(connection, "inbox:0") == ("output", "inbox:0")
        assert queries.resolve(connection, "digits/1") == ("model_version", "digits/1")
        assert queries.resolve(connection, "source:forum") == ("source", "forum")
        assert queries.resolve(connection, "d1d1d1") == ("dataset_version", "d1" * 32)
        assert queries.resolve(connection, "train-07") == ("example", "train-07")
        assert queries.resolve(connection, story.audit.audit_id[:12]) == ("audit", story.audit.audit_id)
        with pytest.raises(UsageError, match=r"train-0 names more than one thing: example:train-00, example:train-01"):
            queries.resolve(connection, "train-0")
        with pytest.raises(NotFoundError, match=r"'d1d1d'"):
            queries.resolve(connection, "d1d1d")


@pytest.mark.parametrize("ask", [queries.resolve, queries.upstream, queries.downstream, queries.explain])
def test_an_unknown_id_is_answered_with_the_closest_ones(ask, story_ledger: Ledger) -> None:
    with story_ledger.read() as connection, pytest.raises(NotFoundError, match=r"inbox:99.* closest are: .*inbox:"):
        ask(connection, "inbox:99")


def test_prefixes_take_their_percent_signs_literally(story_ledger: Ledger) -> None:
    with story_ledger.read() as connection, pytest.raises(NotFoundError):
        queries.resolve(connection, "inbox%%")
