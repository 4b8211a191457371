from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import duckdb
import pytest

from gradtrail.errors import NotFoundError, UsageError
from gradtrail.lineage.ledger.writing import Ledger
from gradtrail.lineage.read.comparisons import compare_audits
from gradtrail.lineage.read.reach import EXAMPLE_ID, blast_radius
from gradtrail.lineage.sql.answering import schema_text
from gradtrail.nouns import Audit, ExampleInfluence, OutputResult, Share
from gradtrail.tasks.core.measured_fidelity import audited_fidelity


@pytest.fixture
def second_audit(story, story_ledger: Ledger) -> Audit:
    """An audit after the story's: one output of it again and one new, by another method, with nothing to find."""
    audit = replace(story.audit, method="influence", outputs=(("inbox:1", "emitted"), ("inbox:2", "emitted")))
    first = story.evidence["attributions"][0]
    story_ledger.record_audit(
        audit,
        method_notes={},
        results=[OutputResult(each, "a seven", 0.75, each == "inbox:1", 8.0, -4.0) for each in ("inbox:1", "inbox:2")],
        attributions=[replace(first, output_id=each, example_id="train-07") for each in ("inbox:1", "inbox:2")],
        shares=[Share(None, "proponent", "source", "forum", 0.9, 0.5), Share(None, "proponent", "source", "x", 0.1, 0)],
        influences=[ExampleInfluence("train-07", "proponent", 1, 0.9)],
        findings=[],
    )
    return audit


def test_the_blast_radius_of_an_example_is_what_names_it(story, story_ledger: Ledger) -> None:
    with story_ledger.read() as connection:
        found = blast_radius(connection, EXAMPLE_ID, ["train-00"])
    by_evidence = {(each.kind, each.id, each.evidence): each for each in found.touched}
    audit_id = story.audit.audit_id
    assert found.examples == 1
    assert found.ids("dataset_version") == [story.dataset.dataset_version_id]
    assert found.ids("model_version") == ["digits/1"]
    assert found.ids("audit") == [audit_id]
    assert found.ids("output") == ["inbox:0", "inbox:1"]
    assert found.ids("report") == ["ab" * 32]
    of_output = by_evidence["output", "inbox:0", "among its strongest examples"]
    assert (of_output.side, of_output.best_rank, of_output.examples) == ("proponent", 1, 1)
    assert of_output.share == pytest.approx(3.5 / 8.0)
    overall = by_evidence["audit", audit_id, "among the strongest examples over all outputs"]
    assert (overall.best_rank, overall.share) == (1, 0.5)
    unseen = {each.what: each.number for each in found.unseen}
    assert unseen == {"outputs outside any audit": 3}


def test_the_blast_radius_of_a_source_says_what_it_cannot_see(story, story_ledger: Ledger) -> None:
    with story_ledger.read() as connection:
        found = blast_radius(connection, "source", ["forum"])
        licence = blast_radius(connection, "licence", ["unknown", "MIT"])
        by_macro = connection.execute("SELECT DISTINCT id FROM blast_radius('forum') WHERE kind = 'output'").fetchall()
    shares = {each.id: each.share for each in found.touched if each.evidence == "share of the influence on it"}
    assert shares == {"inbox:0": 0.75, "inbox:1": 0.75}
    assert {row[0] for row in by_macro} == set(found.ids("output")) == {"inbox:0", "inbox:1"}
    # Six examples of that source and two outputs make twelve scores; three of each output were kept.
    assert {each.what: each.number for each in found.unseen} == {
        "outputs outside any audit": 3,
        "scores that were not kept": 6,
        "examples left out of an index": 1,
    }
    assert {each.what for each in licence.unseen} >= {"audits without shares of this attribute"}
    assert licence.examples == 8


def test_an_example_below_the_kept_ranks_is_said_to_be_unseen(story_ledger: Ledger) -> None:
    with story_ledger.read() as connection:
        found = blast_radius(connection, EXAMPLE_ID, ["train-10"])
    assert found.ids("output") == []
    assert {each.what: each.number for each in found.unseen}["scores that were not kept"] == 2


def test_a_blast_radius_as_of_an_audit_knows_nothing_later(story, story_ledger: Ledger, second_audit: Audit) -> None:
    with story_ledger.read() as connection:
        now = blast_radius(connection, EXAMPLE_ID, ["train-07"])
        then = blast_radius(connection, EXAMPLE_ID, ["train-07"], as_of=story.audit.audit_id[:8])
        by_sql = connection.execute(
            "SELECT DISTINCT id FROM blast_radius('train-07', as_of := ?) WHERE kind = 'output'", [story.audit.audit_id]
        ).fetchall()
        assert now.ids("output") == ["inbox:1", "inbox:2"]
        assert then.ids("output") == by_sql == []
        assert {each.what: each.number for each in now.unseen}["outputs outside any audit"] == 2
        assert {each.what: each.number for each in then.unseen}["outputs outside any audit"] == 3
        with pytest.raises(NotFoundError, match="There is no audit 'zz'"):
            blast_radius(connection, EXAMPLE_ID, ["train-07"], as_of="zz")


def test_a_personal_attribute_is_asked_about_like_any_other(story, empty_ledger: Ledger) -> None:
    manifest = [
        replace(row, attributes={**row.attributes, "author": f"author {n % 4}"}) for n, row in enumerate(story.manifest)
    ]
    empty_ledger.record_dataset_version(story.dataset, manifest, ["author"])
    with empty_ledger.read() as connection:
        assert connection.execute("SELECT count(*) FROM example WHERE attributes['author'] IS NOT NULL").fetchall() == [
            (0,)
        ]
        found = blast_radius(connection, "author", ["author 1", "author 2"])
    assert (found.examples, found.ids("dataset_version")) == (6, [story.dataset.dataset_version_id])


@pytest.mark.parametrize("value", ["nobody's", '"; DROP TABLE example; --', "", "%"])
def test_a_value_that_no_example_has_is_named(value: str, story_ledger: Ledger) -> None:
    with story_ledger.read() as connection, pytest.raises(NotFoundError, match="No example in the ledger has source"):
        blast_radius(connection, "source", [value])


def test_two_audits_stand_side_by_side(story, story_ledger: Ledger, second_audit: Audit) -> None:
    with story_ledger.read() as connection:
        found = compare_audits(connection, story.audit.audit_id, second_audit.audit_id[:12])
        with pytest.raises(NotFoundError, match="There is no audit 'abc'"):
            compare_audits(connection, "abc", story.audit.audit_id)
        with pytest.raises(duckdb.Error, match="there is no audit nobody"):
            connection.execute("FROM compare_audits('nobody', 'nobody')")
    lines = {(line.aspect, line.name): line for line in found.lines}
    method = lines["method", "method"]
    assert (method.a, method.b, method.same) == ("grad_cos", "influence", False)
    assert lines["method", "model version"].same
    forum = lines["share", "proponent, source forum"]
    assert forum.difference == pytest.approx(0.9 - 0.75)
    assert (lines["share", "proponent, source x"].a, lines["share", "proponent, source archive"].b) == (None, None)
    assert lines["outputs", "mean loss"].difference == pytest.approx(0.5)
    assert lines["outputs", "reproduced"].difference == -1
    assert (lines["outputs", "in this audit only"].a, lines["outputs", "in this audit only"].b) == ("1", "1")
    assert lines["finding", "high, share_of_licence"].b is None
    # It was measured with parameters that neither audit has.
    assert ("fidelity", "fidelity_subset") not in lines


def test_a_comparison_shows_the_fidelity_that_was_known_at_each_audit(story, story_ledger: Ledger) -> None:
    audit = replace(story.audit, method="influence", parameters={**story.fidelity.parameters, "top_k": 3})
    story_ledger.record_audit(audit, **story.evidence)
    story_ledger.record_fidelities([replace(story.fidelity, value=0.5)])
    again = replace(audit, parameters={**audit.parameters, "top_k": 4})
    story_ledger.record_audit(again, **story.evidence)
    with story_ledger.read() as connection:
        found = compare_audits(connection, audit.audit_id, again.audit_id)
    line = next(line for line in found.lines if line.aspect == "fidelity")
    assert (line.a, line.b, line.difference) == ("0.83", "0.5", pytest.approx(-0.33))


@pytest.mark.parametrize(("horizon", "expected"), [("", "0.31"), ("now", "0.91"), ("training", "0.31")])
def test_a_comparison_shows_the_fidelity_that_the_report_prints(
    horizon: str, expected: str, story, story_ledger: Ledger
) -> None:
    fidelities = [
        replace(
            story.fidelity,
            value=value + worse,
            evidence={
                "steps": steps,
                "longest": steps == 200,
                "horizon": {10: "now", 50: "", 200: "training"}[steps],
                "target": target,
                "index_ids": index_ids,
            },
        )
        for target, index_ids, worse in (
            ("label", list(story.audit.index_ids), -0.1),
            ("emitted", ["another", *story.audit.index_ids], -0.2),
            ("emitted", list(story.audit.index_ids), 0),
        )
        for steps, value in ((10, 0.91), (50, 0.6), (200, 0.31))
    ]
    story_ledger.record_fidelities(fidelities)
    named = {"named_horizon": horizon} if horizon else {}
    parameters = {**story.fidelity.parameters, **named}
    audit = replace(story.audit, method="influence", parameters=parameters)
    story_ledger.record_audit(audit, **story.evidence)
    with story_ledger.read() as connection:
        [line] = [
            line
            for line in compare_audits(connection, story.audit.audit_id, audit.audit_id).lines
            if line.aspect == "fidelity"
        ]
        printed = audited_fidelity(
            connection, "c2" * 32, "influence", parameters, audit.weighting_id, audit.index_ids, "emitted"
        )
    assert printed is not None
    assert (line.a, line.b, line.b) == (None, expected, str(printed.value))


def test_findings_are_open_until_a_later_audit_replaces_them(story_ledger: Ledger, story) -> None:
    query = "SELECT rule FROM open_findings ORDER BY rule"
    with story_ledger.read() as connection:
        assert connection.execute(query).fetchall() == [("dominating_example",), ("share_of_licence",)]
    later = replace(story.audit, outputs=(("inbox:3", "emitted"),))
    result = replace(story.evidence["results"][0], output_id="inbox:3")
    nothing = {"method_notes": {}, "attributions": [], "shares": [], "influences": [], "findings": []}
    story_ledger.record_audit(later, results=[result], **nothing)
    with story_ledger.read() as connection:
        assert connection.execute(query).fetchall() == [("dominating_example",)]


def test_coverage_counts_what_was_known_and_audited_then(story_ledger: Ledger, second_audit: Audit) -> None:
    with story_ledger.read() as connection:
        found = connection.execute(
            "SELECT outputs, reproduced, outputs_known, outputs_audited, parameter_share, examples_left_out, reported"
            " FROM audit_coverage ORDER BY audited_at"
        ).fetchall()
    assert found == [(2, 2, 5, 2, 0.9, 1, True), (2, 1, 5, 3, 0.9, 1, False)]


def test_the_influence_of_a_source_is_followed_from_audit_to_audit(story_ledger: Ledger, second_audit: Audit) -> None:
    with story_ledger.read() as connection:
        found = connection.execute(
            "SELECT share, change FROM source_influence_over_time WHERE source = 'forum' ORDER BY audited_at"
        ).fetchall()
    assert found[0] == (0.75, None)
    assert found[1] == (0.9, pytest.approx(0.15))


def test_every_relation_column_and_macro_is_explained(story_ledger: Ledger) -> None:
    text = schema_text(story_ledger.paths.snapshot)
    with story_ledger.read() as connection:
        silent = connection.execute(
            """
            SELECT table_name, column_name FROM duckdb_columns() WHERE NOT internal AND comment IS NULL
                AND table_name <> 'attribution_by_group'
            UNION ALL SELECT view_name, '' FROM duckdb_views() WHERE NOT internal AND comment IS NULL
            UNION ALL SELECT function_name, '' FROM duckdb_functions()
                WHERE NOT internal AND macro_definition IS NOT NULL AND comment IS NULL"""
        ).fetchall()
    assert silent == []
    for name in ("source_influence_over_time", "model_version_dataset", "audit_coverage", "open_findings"):
        assert f"\n{name} (view): " in text
    assert "\nblast_radius(start_id, attribute, as_of) (macro): What an example or a source touched" in text
    assert "\nupstream(start_id, start_kind, max_depth, members, as_of) (macro): " in text


def test_ids_may_hold_quotes(story, story_ledger: Ledger, all_rows: Callable[[Ledger], dict]) -> None:
    odd = 'it\'s "quoted"; DROP TABLE output; --'
    story_ledger.record_outputs([replace(story.outputs[0], output_id=odd, record_id=odd)])
    with story_ledger.read() as connection:
        from gradtrail.lineage.read import queries

        assert queries.explain(connection, odd).output.output_id == odd
        assert queries.upstream(connection, odd)[0].node_id == odd
        with pytest.raises(NotFoundError):
            queries.upstream(connection, odd + "'")
        with pytest.raises((NotFoundError, UsageError)):
            queries.upstream(connection, "'; DROP TABLE output; --")
    assert len(all_rows(story_ledger)["output"]) == 6
