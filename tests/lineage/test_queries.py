from __future__ import annotations

from dataclasses import replace

import pytest

from gradtrail.errors import NotFoundError
from gradtrail.lineage.ledger.writing import Ledger
from gradtrail.lineage.read import queries


def test_every_noun_comes_back_as_it_was_recorded(story, story_ledger: Ledger) -> None:
    with story_ledger.read() as connection:
        assert queries.dataset_version(connection, story.dataset.dataset_version_id) == story.dataset
        assert queries.model_version(connection, "digits/1") == story.model_version
        assert queries.run(connection, "run-1") == story.run
        assert queries.checkpoint(connection, "c1" * 32) == story.checkpoints[0]
        assert queries.checkpoints_of(connection, "digits/1") == list(story.checkpoints)
        assert queries.index(connection, story.index.index_id) == story.index
        assert queries.indexes_of(connection, "c2" * 32) == [story.index]
        assert queries.weighting(connection, story.weighting.weighting_id) == story.weighting
        assert queries.fidelities(connection, "c2" * 32) == [story.fidelity]
        assert queries.fidelities(connection, "c2" * 32, before=1) == []
        assert {output.output_id for output in queries.outputs_of(connection, "digits/1")} == {
            output.output_id for output in story.outputs if output.model_version_id == "digits/1"
        }
        ids = [output.output_id for output in reversed(story.outputs)]
        assert queries.outputs(connection, [*ids, "unknown"]) == list(reversed(story.outputs))
        assert queries.audit(connection, story.audit.audit_id) == story.audit
        assert queries.audits(connection) == queries.audits(connection, "digits/1") == [story.audit]
        assert queries.latest_audit(connection) == queries.latest_audit(connection, "digits/1") == story.audit


def test_what_is_not_there_is_none_or_empty(story_ledger: Ledger) -> None:
    with story_ledger.read() as connection:
        for ask in (
            queries.dataset_version,
            queries.model_version,
            queries.run,
            queries.checkpoint,
            queries.index,
            queries.weighting,
            queries.audit,
            queries.report_of,
            queries.latest_audit,
        ):
            assert ask(connection, "unknown") is None
        assert queries.checkpoints_of(connection, "unknown") == []
        assert queries.examples(connection, "unknown", ["train-00"]) == {}
        assert queries.audits(connection, "unknown") == []


def test_audit_details_hold_all_the_evidence_in_order(story, story_ledger: Ledger) -> None:
    with story_ledger.read() as connection:
        details = queries.audit_details(connection, story.audit.audit_id)
        with pytest.raises(NotFoundError, match="no audit 99"):
            queries.audit_details(connection, "99")
    evidence = story.evidence
    assert details.audit == story.audit
    assert details.model_version == story.model_version
    assert details.dataset_version_id == story.dataset.dataset_version_id
    assert details.method_notes == evidence["method_notes"]
    assert list(details.results) == evidence["results"]
    assert list(details.attributions) == evidence["attributions"]
    assert list(details.shares) == evidence["shares"]
    assert list(details.influences) == evidence["influences"]
    assert list(details.findings) == evidence["findings"]
    assert details.recorded_at.tzinfo is not None


def test_an_output_is_explained_down_to_the_checkpoint(story, story_ledger: Ledger) -> None:
    with story_ledger.read() as connection:
        explanation = queries.explain(connection, "inbox:1")
    assert explanation.output == story.outputs[1]
    assert explanation.model_version == story.model_version
    assert explanation.run == story.run
    assert explanation.checkpoint == story.checkpoints[-1]
    assert explanation.dataset_version == story.dataset
    assert explanation.audit == story.audit
    assert explanation.result == story.evidence["results"][1]
    assert [each.attribution.example_id for each in explanation.proponents] == ["train-00", "train-01", "train-02"]
    assert [each.attribution.score for each in explanation.opponents] == [-3.5, -2.5, -1.5]
    assert explanation.proponents[1].attributes == {"licence": "MIT", "source": "forum"}
    assert explanation.proponents[1].content_sha256 == story.manifest[1].content_sha256
    assert {share.output_id for share in explanation.shares} == {None, "inbox:1"}
    assert [finding.rule for finding in explanation.findings] == ["share_of_licence", "dominating_example"]
    assert explanation.report is not None
    assert explanation.report.mlflow_run_id == "run-of-audit"


def test_an_output_without_audit_is_explained_by_its_training(story, story_ledger: Ledger) -> None:
    with story_ledger.read() as connection:
        explanation = queries.explain(connection, "inbox:4")
        assert explanation.audit is None
        assert explanation.proponents == ()
        assert explanation.dataset_version == story.dataset
        with pytest.raises(NotFoundError, match="does not examine output inbox:4"):
            queries.explain(connection, "inbox:4", audit_id=story.audit.audit_id)
        with pytest.raises(NotFoundError, match="digits/1 is a model version, not an output"):
            queries.explain(connection, "digits/1")


def test_the_latest_audit_explains_an_output_unless_another_is_asked_for(story, story_ledger: Ledger) -> None:
    second = replace(story.audit, method="influence")
    story_ledger.record_audit(second, **story.evidence)
    with story_ledger.read() as connection:
        assert queries.explain(connection, "inbox:0").audit == second
        assert queries.explain(connection, "inbox:0", audit_id=story.audit.audit_id).audit == story.audit
        assert queries.latest_audit(connection, "digits/1") == second


def test_examples_come_with_attributes_and_place(story, story_ledger: Ledger) -> None:
    with story_ledger.read() as connection:
        found = queries.examples(connection, story.dataset.dataset_version_id, ["train-07", "train-02", "train-77"])
        counts = queries.attribute_counts(connection, story.dataset.dataset_version_id)
    assert list(found) == ["train-02", "train-07"]
    assert found["train-07"].position == 7
    assert found["train-07"].attributes == story.manifest[7].attributes
    assert [(each.attribute, each.value, each.examples) for each in counts] == [
        ("licence", "CC-BY", 4),
        ("licence", "MIT", 4),
        ("licence", "unknown", 4),
        ("source", "archive", 6),
        ("source", "forum", 6),
    ]


def test_refused_records_are_counted_by_source_and_time(story, story_ledger: Ledger) -> None:
    story_ledger.record_quarantine("inbox", "broken", "and no image")
    story_ledger.record_quarantine("traces", "other", "no prediction")
    with story_ledger.read() as connection:
        sequence = queries.audit_details(connection, story.audit.audit_id).event_sequence
        assert [each.cause for each in queries.quarantined(connection, "inbox")] == ["no label", "and no image"]
        assert [each.record_id for each in queries.quarantined(connection)] == ["broken", "broken", "other"]
        assert [each.cause for each in queries.quarantined(connection, before=sequence)] == ["no label"]


def test_the_whole_chain_stands_in_one_row_of_output_lineage(story, story_ledger: Ledger) -> None:
    with story_ledger.read() as connection:
        rows = connection.execute(
            """
            SELECT example_id, source, licence, dataset_version_id, dataset, run_id, checkpoint_id, checkpoint_step
            FROM output_lineage WHERE output_id = 'inbox:0' AND side = 'proponent' ORDER BY rank"""
        ).fetchall()
        shares = connection.execute(
            "SELECT source, share, ratio FROM source_share WHERE output_id IS NULL ORDER BY share DESC"
        ).fetchall()
    chain = (story.dataset.dataset_version_id, "digits-train", "run-1", "c2" * 32, 20)
    assert rows == [
        ("train-00", "archive", "CC-BY", *chain),
        ("train-01", "forum", "MIT", *chain),
        ("train-02", "archive", "unknown", *chain),
    ]
    assert shares == [("forum", 0.75, 1.5), ("archive", 0.25, 0.5)]
