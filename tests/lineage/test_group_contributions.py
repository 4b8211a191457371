from dataclasses import replace

import duckdb
import pytest

from gradtrail.errors import DataError
from gradtrail.lineage.chain import rows
from gradtrail.lineage.chain.appending import append
from gradtrail.lineage.chain.rows import rows_of
from gradtrail.lineage.ledger.audit_rows import audit_rows
from gradtrail.lineage.ledger.writing import Ledger, nouns_to_rows
from gradtrail.lineage.read import queries
from gradtrail.lineage.schema.files import newest_version, schema_files
from gradtrail.lineage.schema.tables import TABLES, tables_at
from gradtrail.lineage.sql.answering import run_sql
from gradtrail.lineage.verify.verifying import verify_ledger
from gradtrail.nouns import GroupContribution, Weighting


def _recorded_by_version_3(story, ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """The story's audit as a gradtrail of schema version 3 wrote it: the same rows, but no contributions of groups."""
    monkeypatch.setattr(rows, "TABLES", {**TABLES, **tables_at(3)})
    ledger.paths.database.parent.mkdir(parents=True)
    first = schema_files()[:3]
    with duckdb.connect(str(ledger.paths.database)) as connection:
        connection.begin()
        for each in first:
            connection.execute(each.text)
        append(
            connection, "schema", "version 3", [rows_of("schema_version", [(e.version, e.name, "x") for e in first])]
        )
        events = {
            "dataset_version": nouns_to_rows.dataset_rows(story.dataset, story.manifest),
            "model_version": nouns_to_rows.model_version_rows(story.model_version, story.run, story.checkpoints),
            "index": [nouns_to_rows.index_rows(story.index)],
            "weighting": [nouns_to_rows.weighting_rows(story.weighting)],
            "outputs": [nouns_to_rows.output_rows(story.outputs)],
            "audit": audit_rows(story.audit, **{**story.evidence, "group_contributions": ()}),
        }
        for kind, found in events.items():
            append(connection, kind, kind, list(found))
        connection.commit()


def test_contributions_are_read_back_as_they_were_recorded(story, story_ledger: Ledger) -> None:
    with story_ledger.read() as connection:
        details = queries.audit_details(connection, story.audit.audit_id)
        of_output = queries.audit_details(connection, story.audit.audit_id, output_id="inbox:1")
    assert list(details.group_contributions) == story.evidence["group_contributions"]
    assert [each.output_id for each in of_output.group_contributions] == [None, None, "inbox:1", "inbox:1"]


def test_the_view_gives_depth_and_weight(story, story_ledger: Ledger) -> None:
    learned = Weighting("further_training", {"conv": 1.5, "head": 0.5})
    audit = replace(story.audit, weighting_id=learned.weighting_id)
    story_ledger.record_weighting(learned)
    story_ledger.record_audit(audit, **story.evidence)
    story_ledger.publish_snapshot()
    found = run_sql(
        story_ledger.paths.snapshot,
        "SELECT weight, depth, group_name, share FROM attribution_by_group WHERE output_id = 'inbox:1' ORDER BY ALL",
    )
    assert [tuple(row.values()) for row in found.to_pylist()] == [
        (0.5, 1, "head", -0.25),
        (1.0, 0, "conv", 1.25),
        (1.0, 1, "head", -0.25),
        (1.5, 0, "conv", 1.25),
    ]


def test_contributions_that_do_not_fit_the_audit_are_refused(story, story_ledger: Ledger, all_rows) -> None:
    before = all_rows(story_ledger)
    audit = replace(story.audit, method="grad_dot")
    for bad, message in (
        (GroupContribution("inbox:4", "proponent", "conv", 1.0), "output inbox:4, which it does not examine"),
        (GroupContribution("inbox:0", "opponent", "conv", 0.9), r"contribute 0\.9 of the opponents' scores of inbox:0"),
        (GroupContribution(None, "opponent", "conv", float("nan")), "all outputs"),
    ):
        with pytest.raises(DataError, match=message):
            story_ledger.record_audit(audit, **{**story.evidence, "group_contributions": [bad]})
    assert all_rows(story_ledger) == before


def test_the_same_contributions_again_are_harmless_and_others_are_refused(story, story_ledger: Ledger) -> None:
    assert not story_ledger.record_audit(story.audit, **story.evidence)
    first, second, *rest = story.evidence["group_contributions"]
    other = [replace(first, share=0.5), replace(second, share=0.5), *rest]
    with pytest.raises(DataError, match=r"group_contribution .* with share 0\.75, and was given again with 0\.5"):
        story_ledger.record_audit(story.audit, **{**story.evidence, "group_contributions": other})


def test_a_ledger_of_version_3_opens_migrates_and_verifies(
    story, empty_ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as then:
        _recorded_by_version_3(story, empty_ledger, then)
    assert verify_ledger(empty_ledger).ok
    with empty_ledger.read() as connection:
        versions = connection.execute("SELECT version FROM schema_version ORDER BY 1").fetchall()
        details = queries.audit_details(connection, story.audit.audit_id)
    assert [row[0] for row in versions][:4] == [1, 2, 3, 4]
    assert versions[-1][0] == newest_version()
    assert details.audit == story.audit
    assert details.group_contributions == ()
    # The same audit computed again has contributions now; what was recorded stays as it is.
    assert not empty_ledger.record_audit(story.audit, **story.evidence)
    later = replace(story.audit, method="grad_dot")
    assert empty_ledger.record_audit(later, **story.evidence)
    with empty_ledger.read() as connection:
        assert queries.audit_details(connection, story.audit.audit_id).group_contributions == ()
        assert len(queries.audit_details(connection, later.audit_id).group_contributions) == 6
    report = verify_ledger(empty_ledger)
    assert report.ok
    assert report.problems == ()


def test_a_contribution_cannot_be_changed_or_deleted_by_accident(story_ledger: Ledger) -> None:
    with duckdb.connect(str(story_ledger.paths.database)) as connection:
        for statement in ("UPDATE group_contribution SET share = 0", "DELETE FROM group_contribution"):
            with pytest.raises(duckdb.Error, match="append-only"):
                connection.execute(statement)
