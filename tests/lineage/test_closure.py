from __future__ import annotations

from collections.abc import Iterator

import duckdb
import networkx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gradtrail.errors import NotFoundError, UsageError
from gradtrail.lineage.ledger.writing import Ledger
from gradtrail.lineage.read import queries
from gradtrail.lineage.schema.files import schema_files

# Structure may have any edge, so also cycles; examples are reached by influence and membership, and lead to attributes.
STRUCTURE = st.tuples(st.sampled_from(["output", "audit", "dataset_version"]), st.sampled_from("abc"))
EXAMPLE = st.tuples(st.just("example"), st.tuples(st.sampled_from(["x", "y", "it's@"]), st.sampled_from("abc")))
WHEN = st.integers(1, 3)
STRUCTURE_EDGES = st.lists(st.tuples(STRUCTURE, STRUCTURE, WHEN), max_size=14)
INFLUENCES = st.lists(st.tuples(st.sampled_from("abc"), EXAMPLE), max_size=8)
EXAMPLES = st.dictionaries(
    EXAMPLE, st.tuples(st.sampled_from(["s", None]), st.sampled_from(["l", "m", None]), WHEN), max_size=6
)


@pytest.fixture(scope="module")
def bare_macros() -> Iterator[duckdb.DuckDBPyConnection]:
    """The macros of the schema over plain tables of structure instead of the views."""
    with duckdb.connect(":memory:") as connection:
        for each in schema_files():
            connection.execute(each.text)
        connection.execute(
            "DROP VIEW edge; DROP VIEW structure_edge; DROP VIEW structure_node; DROP VIEW audit_dataset"
        )
        for table in ("example", "audit_output"):
            connection.execute(f"CREATE OR REPLACE VIEW standing_{table} AS FROM {table}")
        for table in ("example", "attribution", "audit_output"):
            for event in ("update", "delete"):
                connection.execute(f"DROP TRIGGER {table}_refuses_{event} ON {table}")
        connection.execute("CREATE TABLE structure_node (kind TEXT, node_id TEXT, label TEXT, event_sequence BIGINT)")
        connection.execute("CREATE TABLE audit_dataset (audit_id TEXT, dataset_version_id TEXT)")
        connection.execute(
            "CREATE TABLE structure_edge"
            " (from_kind TEXT, from_id TEXT, relation TEXT, to_kind TEXT, to_id TEXT, event_sequence BIGINT)"
        )
        yield connection


def _load(connection, structure, influences, examples) -> None:
    for table in ("structure_node", "structure_edge", "audit_dataset", "audit_output", "attribution", "example"):
        connection.execute(f"DELETE FROM {table}")  # noqa: S608 - one of six literals
    nodes = {(kind, name) for kind in ("output", "audit", "dataset_version") for name in "abc"}
    connection.executemany("INSERT INTO structure_node VALUES (?, ?, 'label', 0)", sorted(nodes))
    for (from_kind, from_id), (to_kind, to_id), when in structure:
        connection.execute(
            "INSERT INTO structure_edge VALUES (?, ?, 'needs', ?, ?, ?)", [from_kind, from_id, to_kind, to_id, when]
        )
    for number, (output_id, (_, (example_id, dataset_id))) in enumerate(influences):
        audit_id, when = f"audit {number}", 1 + number % 3
        connection.execute("INSERT INTO audit_dataset VALUES (?, ?)", [audit_id, dataset_id])
        connection.execute(
            "INSERT INTO audit_output VALUES (?, ?, 0, '', '', 0, true, 0, 0, ?, '')", [audit_id, output_id, when]
        )
        connection.execute(
            "INSERT INTO attribution VALUES (?, ?, ?, 'proponent', 1, 1, ?, '')",
            [audit_id, output_id, example_id, when],
        )
    for number, ((_, (example_id, dataset_id)), (source, licence, when)) in enumerate(examples.items()):
        attributes = {key: value for key, value in (("source", source), ("licence", licence)) if value}
        connection.execute(
            "INSERT INTO example VALUES (?, ?, ?, '', ?, ?, '')", [dataset_id, example_id, number, attributes, when]
        )


def _graph(structure, influences, examples, bound: int, *, members: bool) -> networkx.DiGraph:
    """The same as networkx, as it was at event `bound`."""
    graph = networkx.DiGraph()
    graph.add_nodes_from((kind, name) for kind in ("output", "audit", "dataset_version") for name in "abc")
    graph.add_edges_from((start, end) for start, end, when in structure if when <= bound)
    known = {node: (source, licence) for node, (source, licence, when) in examples.items() if when <= bound}
    for number, (output_id, example) in enumerate(influences):
        if 1 + number % 3 <= bound:
            graph.add_edge(("output", output_id), _node(example))
    for example, values in known.items():
        graph.add_node(_node(example))
        if members:
            graph.add_edge(("dataset_version", example[1][1]), _node(example))
        for kind, value in zip(("source", "licence"), values, strict=True):
            if value:
                graph.add_edge(_node(example), (kind, value))
    return graph


def _node(example: tuple[str, tuple[str, str]]) -> tuple[str, str]:
    return "example", f"{example[1][0]}@{example[1][1]}"


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    start=st.one_of(STRUCTURE, EXAMPLE, st.just(("source", "s")), st.just(("licence", "l"))),
    structure=STRUCTURE_EDGES,
    influences=INFLUENCES,
    examples=EXAMPLES,
    bound=WHEN,
    furthest=st.integers(0, 4),
)
def test_closures_are_those_of_networkx_on_any_graph_with_cycles_at_any_moment(
    bare_macros: duckdb.DuckDBPyConnection, start, structure, influences, examples, bound: int, furthest: int
) -> None:
    # What influences an output is in the ledger by then: no other example may be attributed.
    influences = [(output_id, example) for output_id, example in influences if example in examples]
    examples = {
        example: (
            *values[:2],
            min([values[2], *(1 + n % 3 for n, each in enumerate(influences) if each[1] == example)]),
        )
        for example, values in examples.items()
    }
    _load(bare_macros, structure, influences, examples)
    graph = _graph(structure, influences, examples, bound, members=True)
    begin = _node(start) if start[0] == "example" else start
    for macro, walked, option in (
        ("upstream_until", graph, ", members := true"),
        ("downstream_until", graph.reverse(), ""),
    ):
        expected = dict(networkx.single_source_shortest_path_length(walked, begin)) if begin in walked else {}
        for depth in (100, furthest):
            question = f"FROM {macro}(?, start_kind := ?, max_depth := ?, bound := ?{option})"
            rows = bare_macros.execute(question, [begin[1], begin[0], depth, bound]).fetchall()
            found = [(kind, node, far, parent_kind, parent) for node, kind, far, _, parent, parent_kind, _ in rows]
            reached = {node: far for node, far in expected.items() if far <= depth}
            assert {(kind, node): far for kind, node, far, _, _ in found} == reached
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


def test_a_closure_as_of_an_audit_shows_the_graph_as_it_was(story, story_ledger: Ledger) -> None:
    from dataclasses import replace

    later = replace(story.audit, method="influence", outputs=(("inbox:0", "emitted"), ("inbox:2", "emitted")))
    result, attribution = story.evidence["results"][0], story.evidence["attributions"][0]
    story_ledger.record_audit(
        later,
        method_notes={},
        results=[replace(result, output_id=each) for each in ("inbox:0", "inbox:2")],
        attributions=[replace(attribution, output_id="inbox:2", example_id="train-07")],
        shares=[],
        influences=[],
        findings=[],
    )
    first, second = story.audit.audit_id, later.audit_id
    with story_ledger.read() as connection:

        def outputs(as_of: str | None) -> set[str]:
            return {node.node_id for node in queries.downstream(connection, "train-07", as_of=as_of) if node.depth == 1}

        now = {"inbox:2", story.dataset.dataset_version_id}
        assert outputs(None) == outputs(second) == outputs(second[:9]) == now
        assert outputs(first) == {story.dataset.dataset_version_id}
        # The report of the first audit came after it.
        kinds = {node.kind for node in queries.downstream(connection, "inbox:0", as_of=first)}
        assert kinds == {"output", "audit"}
        by_sql = connection.execute("SELECT kind FROM downstream('inbox:0', as_of := ?)", [first[:9]]).fetchall()
        assert {row[0] for row in by_sql} == kinds
        with pytest.raises(NotFoundError, match=f"{second} was not in the ledger yet when audit {first[:9]}"):
            queries.upstream(connection, second, as_of=first[:9])
        with pytest.raises(NotFoundError, match="There is no audit 'nobody'"):
            queries.upstream(connection, "inbox:0", as_of="nobody")
        with pytest.raises(duckdb.Error, match="there is no audit nobody"):
            connection.execute("FROM upstream('inbox:0', as_of := 'nobody')")
