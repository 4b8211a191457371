from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from typing import Any

import duckdb
import pytest

from gradtrail.errors import DataError, LedgerError, NotFoundError
from gradtrail.lineage.ledger.writing import Ledger
from gradtrail.lineage.read import queries
from gradtrail.lineage.schema.files import schema_files
from gradtrail.lineage.schema.statements import statement
from gradtrail.lineage.schema.tables import TABLES
from gradtrail.lineage.verify.verifying import verify_ledger
from gradtrail.nouns import Attribution, Finding, ManifestRow, OutputResult, Share

Rows = Callable[[Ledger], dict[str, list[tuple[Any, ...]]]]


def test_a_ledger_creates_nothing_until_the_first_write(empty_ledger: Ledger) -> None:
    assert not empty_ledger.paths.database.parent.exists()
    with pytest.raises(NotFoundError, match=r"gradtrail ingest"), empty_ledger.read():
        pass


def test_recording_the_whole_story_again_adds_nothing(story, story_ledger: Ledger, all_rows: Rows) -> None:
    before = all_rows(story_ledger)
    digest = hashlib.sha256(story_ledger.paths.database.read_bytes()).hexdigest()
    assert story_ledger.record_dataset_version(story.dataset, story.manifest) is False
    assert story_ledger.record_model_version(story.model_version, story.run, story.checkpoints) is False
    assert story_ledger.record_index(story.index) is False
    assert story_ledger.record_weighting(story.weighting) is False
    assert story_ledger.record_fidelities([story.fidelity]) is False
    assert story_ledger.record_outputs(story.outputs) == []
    assert story_ledger.record_quarantine("inbox", "broken", "no label") is False
    assert story_ledger.record_audit(story.audit, **story.evidence) is False
    assert story.record_report(story_ledger) is False
    assert all_rows(story_ledger) == before
    assert hashlib.sha256(story_ledger.paths.database.read_bytes()).hexdigest() == digest


def test_each_write_appends_one_event(story, empty_ledger: Ledger) -> None:
    story.record(empty_ledger)
    with empty_ledger.read() as connection:
        kinds = [event.kind for event in reversed(queries.events(connection))]
    assert kinds == [
        "schema",
        "dataset_version",
        "model_version",
        "index",
        "weighting",
        "fidelity",
        "outputs",
        "quarantine",
        "audit",
        "report",
    ]


def _other_manifest(story: Any) -> list[ManifestRow]:
    return [*story.manifest[:-1], replace(story.manifest[-1], attributes={"source": "elsewhere"})]


CONFLICTS = {
    "another licence of one example": (
        lambda story, ledger: ledger.record_dataset_version(story.dataset, _other_manifest(story)),
        r"example .*train-11.* attributes",
    ),
    "another example in the manifest": (
        lambda story, ledger: ledger.record_dataset_version(
            story.dataset, [*story.manifest[:-1], replace(story.manifest[-1], example_id="train-99")]
        ),
        r"train-11.* is in the ledger but not among them",
    ),
    "an example in the manifest that sorts before the one that is gone": (
        lambda story, ledger: ledger.record_dataset_version(
            story.dataset, [*story.manifest[:-1], replace(story.manifest[-1], example_id="earlier")]
        ),
        r"earlier.* is among them but not in the ledger",
    ),
    "another number of examples": (
        lambda story, ledger: ledger.record_dataset_version(
            replace(story.dataset, example_count=11), story.manifest[:-1]
        ),
        r"example_count 12.*11",
    ),
    "another adapter source": (
        lambda story, ledger: ledger.record_model_version(
            replace(story.model_version, adapter_sha256="bb" * 32), story.run, story.checkpoints
        ),
        r"model_version .*digits/1.* adapter_sha256",
    ),
    "another size of a checkpoint": (
        lambda story, ledger: ledger.record_model_version(
            story.model_version, story.run, [story.checkpoints[0], replace(story.checkpoints[1], byte_size=1)]
        ),
        r"checkpoint .*c2c2.* byte_size 4096.*1",
    ),
    "another version of the gradient table": (
        lambda story, ledger: ledger.record_index(replace(story.index, table_version=4)),
        r"gradient_index .* table_version 3.*4",
    ),
    "another payload": (
        lambda story, ledger: ledger.record_outputs([replace(story.outputs[0], payload_sha256="00" * 32)]),
        r"inbox:0.* payload_sha256",
    ),
    "another payload beside a new output": (
        lambda story, ledger: ledger.record_outputs(
            [
                replace(story.outputs[0], output_id="inbox:new", record_id="new"),
                replace(story.outputs[1], payload_sha256="00" * 32),
            ]
        ),
        r"inbox:1.* payload_sha256",
    ),
    "other scores": (
        lambda story, ledger: ledger.record_audit(
            story.audit,
            **{**story.evidence, "attributions": [replace(story.evidence["attributions"][0], score=9.0)]},
        ),
        r"other rows in attribution",
    ),
    "another loss": (
        lambda story, ledger: ledger.record_audit(
            story.audit,
            **{**story.evidence, "results": [replace(each, loss=9.0) for each in story.evidence["results"]]},
        ),
        r"audit_output .*inbox:0.* loss 0.25.*9.0",
    ),
    "another report": (
        lambda story, ledger: ledger.record_report(
            story.audit.audit_id, html_uri="file:///x", html_sha256="00" * 32, file_sha256={}
        ),
        r"report .* html_sha256",
    ),
}


@pytest.mark.parametrize("name", CONFLICTS)
def test_the_same_id_with_other_content_is_refused_and_leaves_no_trace(
    name: str, story, story_ledger: Ledger, all_rows: Rows
) -> None:
    write, message = CONFLICTS[name]
    before = all_rows(story_ledger)
    with pytest.raises(DataError, match=message):
        write(story, story_ledger)
    assert all_rows(story_ledger) == before


def test_names_and_places_may_differ_and_the_first_stay(story, story_ledger: Ledger) -> None:
    moved = replace(story.dataset, name="renamed", manifest_uri="file:///moved")
    assert story_ledger.record_dataset_version(moved, story.manifest) is False
    with story_ledger.read() as connection:
        assert queries.dataset_version(connection, story.dataset.dataset_version_id) == story.dataset


def test_the_last_digits_of_a_score_may_differ_when_it_is_computed_again(story, story_ledger: Ledger) -> None:
    again = [replace(each, score=each.score * (1 + 1e-7)) for each in story.evidence["attributions"]]
    assert story_ledger.record_audit(story.audit, **{**story.evidence, "attributions": again}) is False


def test_a_second_model_version_shares_run_and_checkpoints(story, story_ledger: Ledger) -> None:
    second = replace(story.model_version, version=2)
    elsewhere = [replace(each, source_uri="mlflow:/elsewhere", step=each.step + 1) for each in story.checkpoints]
    assert story_ledger.record_model_version(second, story.run, elsewhere) is True
    with story_ledger.read() as connection:
        assert queries.checkpoints_of(connection, "digits/1") == list(story.checkpoints)
        assert queries.checkpoints_of(connection, "digits/2") == elsewhere
        assert queries.model_versions(connection) == [story.model_version, second]


DANGLING = {
    "model version": lambda story, ledger: ledger.record_model_version(
        replace(story.model_version, version=2, dataset_version_id="99" * 32), story.run, story.checkpoints
    ),
    "index": lambda story, ledger: ledger.record_index(replace(story.index, checkpoint_id="99" * 32)),
    "fidelity": lambda story, ledger: ledger.record_fidelities([replace(story.fidelity, weighting_id="99" * 32)]),
    "outputs": lambda story, ledger: ledger.record_outputs(
        [replace(story.outputs[0], output_id="x", model_version_id="digits/9")]
    ),
    "audit": lambda story, ledger: ledger.record_audit(replace(story.audit, index_ids=("99" * 32,)), **story.evidence),
    "attribution": lambda story, ledger: ledger.record_audit(
        replace(story.audit, method="grad_dot"),
        **{**story.evidence, "attributions": [Attribution("inbox:0", "train-99", "proponent", 1, 1.0)]},
    ),
    "report": lambda _, ledger: ledger.record_report("99" * 32, html_uri="x", html_sha256="00" * 32, file_sha256={}),
}


@pytest.mark.parametrize("name", DANGLING)
def test_nothing_may_refer_to_what_is_not_recorded(name: str, story, story_ledger: Ledger, all_rows: Rows) -> None:
    before = all_rows(story_ledger)
    with pytest.raises(LedgerError, match=r"(digits/9|99).* is not in"):
        DANGLING[name](story, story_ledger)
    assert all_rows(story_ledger) == before


def _audited(story: Any, **changed: Any) -> dict[str, Any]:
    return {**story.evidence, **changed}


BAD_DATA = {
    "a duplicate example": (
        lambda story, ledger: ledger.record_dataset_version(
            replace(story.dataset, dataset_version_id="e1" * 32), [*story.manifest[:-1], story.manifest[0]]
        ),
        r"train-00.* occurs twice",
    ),
    "a manifest cut short": (
        lambda story, ledger: ledger.record_dataset_version(
            replace(story.dataset, dataset_version_id="e1" * 32), story.manifest[:5]
        ),
        r"says 12 examples, its manifest has 5",
    ),
    "an attribute that is not text": (
        lambda story, ledger: ledger.record_dataset_version(
            replace(story.dataset, dataset_version_id="e1" * 32, example_count=1),
            [ManifestRow("one", "00" * 32, {"label": 7})],  # type: ignore[dict-item] # what a careless source gives
        ),
        r"example.attributes does not fit",
    ),
    "an attribute without a value": (
        lambda story, ledger: ledger.record_dataset_version(
            replace(story.dataset, dataset_version_id="e1" * 32, example_count=1),
            [ManifestRow("one", "00" * 32, {"label": None})],  # type: ignore[dict-item] # what a careless source gives
        ),
        r"example.attributes is missing",
    ),
    "text that is not Unicode": (
        lambda _, ledger: ledger.record_quarantine("inbox", "\ud800", "broken"),
        r"quarantine cannot be written as JSON",
    ),
    "a record of no text": (
        lambda story, ledger: ledger.record_outputs([replace(story.outputs[0], output_id="x", source=None)]),
        r"output.source is missing",
    ),
    "parameters that JSON cannot hold": (
        lambda story, ledger: ledger.record_audit(
            replace(story.audit, parameters={"damping": math.inf}), **story.evidence
        ),
        r"audit cannot be written as JSON",
    ),
    "a score that is not a number": (
        lambda story, ledger: ledger.record_audit(
            replace(story.audit, method="x"),
            **_audited(story, attributions=[Attribution("inbox:0", "train-00", "proponent", 1, math.nan)]),
        ),
        r"attribution.score of .*train-00.* is not a finite number",
    ),
    "an infinite loss": (
        lambda story, ledger: ledger.record_audit(
            replace(story.audit, method="x"),
            **_audited(story, results=[replace(each, loss=math.inf) for each in story.evidence["results"]]),
        ),
        r"audit_output.loss of .*inbox:0.* is not a finite number",
    ),
    "an infinite interval": (
        lambda story, ledger: ledger.record_audit(
            replace(story.audit, method="x"),
            **_audited(story, shares=[Share(None, "proponent", "source", "forum", 0.5, 0.5, None, math.inf)]),
        ),
        r"share.interval_high of .* is not a finite number",
    ),
    "a proponent with a negative score": (
        lambda story, ledger: ledger.record_audit(
            replace(story.audit, method="x"),
            **_audited(story, attributions=[Attribution("inbox:0", "train-00", "proponent", 1, -1.0)]),
        ),
        r"train-00 is a proponent of output inbox:0 with score -1.0",
    ),
    "an example on both sides": (
        lambda story, ledger: ledger.record_audit(
            replace(story.audit, method="x"),
            **_audited(
                story,
                attributions=[
                    Attribution("inbox:0", "train-00", "proponent", 1, 1.0),
                    Attribution("inbox:0", "train-00", "opponent", 1, -1.0),
                ],
            ),
        ),
        r"train-00.* occurs twice",
    ),
    "an output without result": (
        lambda story, ledger: ledger.record_audit(
            replace(story.audit, method="x"), **_audited(story, results=story.evidence["results"][:1])
        ),
        r"results are not one for each",
    ),
    "evidence about another output": (
        lambda story, ledger: ledger.record_audit(
            replace(story.audit, method="x"), **_audited(story, findings=[Finding("r", "low", "m", "inbox:4")])
        ),
        r"evidence about output inbox:4",
    ),
    "notes that JSON cannot hold": (
        lambda story, ledger: ledger.record_audit(
            replace(story.audit, method="x"), **_audited(story, method_notes={"damping": math.nan})
        ),
        r"method_notes cannot be written as JSON",
    ),
    "a time without zone": (
        lambda story, ledger: ledger.record_outputs(
            [replace(story.outputs[0], output_id="x", produced_at=datetime(2026, 1, 1))]
        ),
        r"has no time zone",
    ),
    "checkpoints of another model": (
        lambda story, ledger: ledger.record_model_version(
            replace(story.model_version, version=2), story.run, story.checkpoints[:1]
        ),
        r"names run run-1 and checkpoints",
    ),
    "the same output twice": (
        lambda story, ledger: ledger.record_outputs([replace(story.outputs[0], output_id="x")] * 2),
        r"x.* occurs twice",
    ),
}


@pytest.mark.parametrize("name", BAD_DATA)
def test_bad_data_is_refused_and_leaves_no_trace(name: str, story, story_ledger: Ledger, all_rows: Rows) -> None:
    write, message = BAD_DATA[name]
    before = all_rows(story_ledger)
    with pytest.raises(DataError, match=message) as raised:
        write(story, story_ledger)
    assert raised.value.remedy
    assert all_rows(story_ledger) == before


def test_an_audit_over_two_dataset_versions_is_refused(story, story_ledger: Ledger) -> None:
    other = replace(story.dataset, dataset_version_id="d2" * 32)
    story_ledger.record_dataset_version(other, story.manifest)
    second = replace(story.index, dataset_version_id=other.dataset_version_id)
    story_ledger.record_index(second)
    both = replace(story.audit, index_ids=(story.index.index_id, second.index_id))
    with pytest.raises(DataError, match="2 dataset versions"):
        story_ledger.record_audit(both, **story.evidence)


def test_ids_may_hold_quotes_and_sql(story, story_ledger: Ledger) -> None:
    hostile = ["'; DROP TABLE output; --", '"x"', "inbox:' OR '1'='1", "naïve\n\tid", "100%_$name", "😀"]
    dataset = replace(story.dataset, dataset_version_id="d'2", example_count=len(hostile), name="'); --")
    manifest = [ManifestRow(each, "00" * 32, {"source": each, "licence": each, each: each}) for each in hostile]
    assert story_ledger.record_dataset_version(dataset, manifest)
    outputs = [replace(story.outputs[0], output_id=each, record_id=each) for each in hostile]
    assert story_ledger.record_outputs(outputs) == hostile
    assert story_ledger.record_outputs(outputs) == []
    with story_ledger.read() as connection:
        assert [each.output_id for each in queries.outputs(connection, hostile)] == hostile
        assert set(queries.examples(connection, "d'2", hostile)) == set(hostile)
        for each in hostile:
            assert queries.explain(connection, f"output:{each}").output.output_id == each
            assert queries.upstream(connection, f"output:{each}")[0].node_id == each
    assert verify_ledger(story_ledger).ok


def test_outputs_stop_being_pending_once_an_audit_has_examined_them(story, empty_ledger: Ledger) -> None:
    empty_ledger.record_dataset_version(story.dataset, story.manifest)
    empty_ledger.record_model_version(story.model_version, story.run, story.checkpoints)
    empty_ledger.record_index(story.index)
    empty_ledger.record_weighting(story.weighting)
    late_first = list(reversed(story.outputs))
    assert empty_ledger.record_outputs(late_first) == [output.output_id for output in late_first]
    with empty_ledger.read() as connection:
        assert queries.pending_outputs(connection, "digits/1", target="emitted") == list(story.outputs)
        assert queries.pending_outputs(connection, "other/1", target="emitted") == []
    assert empty_ledger.record_audit(story.audit, **story.evidence)
    with empty_ledger.read() as connection:
        assert queries.pending_outputs(connection, "digits/1", target="emitted") == list(story.outputs[2:])
        assert queries.pending_outputs(connection, "digits/1", target="label") == list(story.outputs)


def test_rows_cannot_be_changed_or_deleted_by_accident(story_ledger: Ledger) -> None:
    with duckdb.connect(str(story_ledger.paths.database)) as connection:
        for name in (*TABLES, "event", "row_commitment"):
            with pytest.raises(duckdb.Error, match="append-only"):
                connection.execute(statement("DELETE FROM $table", table=name))
        with pytest.raises(duckdb.Error, match="append-only"):
            connection.execute("UPDATE output SET source = 'x'")


def test_every_table_view_and_column_is_commented(story_ledger: Ledger) -> None:
    with story_ledger.read() as connection:
        bare = connection.execute(
            """
            SELECT table_name FROM duckdb_tables() WHERE comment IS NULL
            UNION ALL SELECT view_name FROM duckdb_views() WHERE NOT internal AND comment IS NULL
            UNION ALL SELECT table_name || '.' || column_name FROM duckdb_columns()
                WHERE comment IS NULL AND table_name IN (SELECT table_name FROM duckdb_tables())"""
        ).fetchall()
    assert bare == []


def test_a_ledger_of_a_newer_gradtrail_is_refused(story, story_ledger: Ledger) -> None:
    with duckdb.connect(str(story_ledger.paths.database)) as connection:
        connection.execute("INSERT INTO schema_version VALUES (999, '999_later.sql', 'x', 1, 'salt'::BLOB)")
    with pytest.raises(LedgerError, match=r"schema version 999.*newer gradtrail"), story_ledger.read():
        pass
    with pytest.raises(LedgerError, match=r"schema version 999"):
        story_ledger.record_weighting(story.weighting)
    with pytest.raises(LedgerError, match=r"schema version 999"):
        verify_ledger(story_ledger)


def test_an_older_ledger_is_brought_up_to_date_when_it_is_read(empty_ledger: Ledger) -> None:
    empty_ledger.paths.database.parent.mkdir(parents=True)
    with duckdb.connect(str(empty_ledger.paths.database)) as connection:
        connection.execute(schema_files()[0].text)
        connection.execute("INSERT INTO schema_version VALUES (1, '001_tables.sql', 'x', 1, 'salt'::BLOB)")
    with empty_ledger.read() as connection:
        versions = [row[0] for row in connection.execute("SELECT version FROM schema_version ORDER BY 1").fetchall()]
        assert connection.execute("SELECT count(*) FROM lineage_node").fetchall() == [(0,)]
    assert versions == [each.version for each in schema_files()]


def test_a_database_of_something_else_is_refused(story, empty_ledger: Ledger) -> None:
    empty_ledger.paths.database.parent.mkdir(parents=True)
    with duckdb.connect(str(empty_ledger.paths.database)) as connection:
        connection.execute("CREATE TABLE customers (name VARCHAR)")
    with pytest.raises(LedgerError, match="customers"):
        empty_ledger.record_weighting(story.weighting)


def test_a_file_that_is_no_database_is_named(story, empty_ledger: Ledger) -> None:
    empty_ledger.paths.database.parent.mkdir(parents=True)
    empty_ledger.paths.database.write_bytes(b"not a database" * 1000)
    with pytest.raises(LedgerError, match=r"ledger\.duckdb cannot be read"):
        empty_ledger.record_weighting(story.weighting)


@contextmanager
def _seconds(name: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    print(f"{name}: {time.perf_counter() - started:.2f} s")


@pytest.mark.ci  # as many rows as a day of audits writes
def test_a_hundred_thousand_attributions_are_recorded_in_seconds(story, story_ledger: Ledger) -> None:
    count = 100_000
    dataset = replace(story.dataset, dataset_version_id="b1" * 32, example_count=count)
    manifest = [ManifestRow(f"row-{n}", f"{n:064x}", {"source": "bulk", "label": str(n % 10)}) for n in range(count)]
    started = time.perf_counter()
    with _seconds("100,000 examples recorded"):
        story_ledger.record_dataset_version(dataset, manifest)
    index = replace(story.index, dataset_version_id=dataset.dataset_version_id)
    story_ledger.record_index(index)
    outputs = [replace(story.outputs[0], output_id=f"bulk:{n}", record_id=str(n)) for n in range(100)]
    story_ledger.record_outputs(outputs)
    audit = replace(
        story.audit,
        outputs=tuple((output.output_id, output.target) for output in outputs),
        index_ids=(index.index_id,),
    )
    results = [OutputResult(output.output_id, "7", 0.1, True, 1.0, -1.0) for output in outputs]
    attributions = [
        Attribution(output.output_id, f"row-{place}", "proponent", place, 1000.0 - place)
        for output in outputs
        for place in range(count // len(outputs))
    ]
    empty: dict[str, Any] = {"shares": [], "influences": [], "findings": [], "method_notes": {}}
    with _seconds("100,000 attributions recorded"):
        assert story_ledger.record_audit(audit, results=results, attributions=attributions, **empty)
    with _seconds("200,000 rows verified"):
        assert verify_ledger(story_ledger).ok
    assert time.perf_counter() - started < 60


def test_that_reproduction_is_no_question_is_kept_as_such(story_ledger: Ledger, story: Any) -> None:
    first, *rest = story.evidence["results"]
    audit = replace(story.audit, method="unasked")
    results = [replace(first, reproduced=None), *rest]
    story_ledger.record_audit(audit, **{**story.evidence, "results": results})
    assert list(verify_ledger(story_ledger).problems) == []
    with story_ledger.read() as opened:
        kept = {each.output_id: each.reproduced for each in queries.audit_details(opened, audit.audit_id).results}
        [(counted,)] = opened.execute(
            "SELECT reproduced FROM audit_coverage WHERE audit_id = ?", [audit.audit_id]
        ).fetchall()
    assert kept == {each.output_id: each.reproduced for each in results}
    assert kept[first.output_id] is None
    assert counted == sum(each.reproduced is True for each in results)
