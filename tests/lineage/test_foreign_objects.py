"""Whatever DuckDB lets one add to a file: an object that is not of the schema is named, in ledger and snapshot."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path

import duckdb
import pytest

from gradtrail.digests import canonical_json, sha256_file, sha256_json
from gradtrail.errors import LedgerError, NotFoundError, UsageError
from gradtrail.lineage.ledger import definitions
from gradtrail.lineage.ledger.seal import read_seal, seal_path
from gradtrail.lineage.ledger.writing import Ledger
from gradtrail.lineage.sql.answering import run_sql, schema_text
from gradtrail.lineage.verify.verifying import VerificationReport, verify_ledger

Tamper = Callable[..., None]

# Each statement adds or changes one object; beside it the name under which it must be told.
FOREIGN = {
    "table": ("CREATE TABLE notes (text VARCHAR)", "notes"),
    "view": ("CREATE VIEW notes AS SELECT 1 AS one", "notes"),
    "view instead of a table": (
        "DROP TRIGGER finding_refuses_update ON finding; DROP TRIGGER finding_refuses_delete ON finding; "
        "ALTER TABLE finding RENAME TO kept; CREATE VIEW finding AS FROM kept",
        "finding",
    ),
    "macro": ("CREATE MACRO twice(x) AS 2 * x", "twice"),
    "macro with the name of a function": ("CREATE MACRO lower(x) AS x", "lower"),
    "table macro": ("CREATE MACRO ones() AS TABLE SELECT 1 AS one", "ones"),
    "table macro with the name of a function": (
        "CREATE MACRO duckdb_views() AS TABLE SELECT * FROM system.main.duckdb_views()",
        "duckdb_views",
    ),
    "another form of our macro": (
        "CREATE OR REPLACE MACRO last_event(as_of) AS 1, (as_of, other) AS 2",
        "last_event",
    ),
    "type": ("CREATE TYPE colour AS ENUM ('red', 'blue')", "colour"),
    "sequence": ("CREATE SEQUENCE counter", "counter"),
    "index": ("CREATE INDEX by_severity ON finding (severity)", "by_severity"),
    "schema": ("CREATE SCHEMA annex", "annex"),
    "nested schema": ("CREATE SCHEMA annex; CREATE SCHEMA annex.deeper", "deeper"),
    "table in a schema": ("CREATE SCHEMA annex; CREATE TABLE annex.event (one BIGINT)", "annex.event"),
    "macro in a schema": ("CREATE SCHEMA annex; CREATE MACRO annex.twice(x) AS 2 * x", "annex.twice"),
    "trigger": (
        "CREATE TRIGGER copies AFTER INSERT ON alert FOR EACH STATEMENT INSERT INTO refusal SELECT 'x'",
        "copies",
    ),
    "comment on a table": ("COMMENT ON TABLE finding IS 'otherwise'", "finding"),
    "comment on a view": ("COMMENT ON VIEW edge IS 'otherwise'", "edge"),
    "comment on a column": ("COMMENT ON COLUMN finding.severity IS 'otherwise'", "finding.severity"),
    "comment on a macro": ("COMMENT ON MACRO TABLE downstream_until IS 'otherwise'", "downstream_until"),
    "column": ("ALTER TABLE refusal ADD COLUMN more VARCHAR", "refusal"),
    "default": ("ALTER TABLE refusal ALTER COLUMN reason SET DEFAULT 'none'", "refusal"),
    "constraint": (
        "DROP TRIGGER finding_refuses_update ON finding; DROP TRIGGER finding_refuses_delete ON finding; "
        "ALTER TABLE finding ALTER COLUMN severity DROP NOT NULL",
        "finding",
    ),
    "generated column": (
        "DROP TRIGGER finding_refuses_update ON finding; DROP TRIGGER finding_refuses_delete ON finding; "
        "CREATE OR REPLACE TABLE finding (severity VARCHAR AS ('low'), one BIGINT)",
        "finding",
    ),
}


def seal_anew(ledger: Ledger, *, copy: bool = True) -> None:
    """Make snapshot and seal fit the file as it is now, as anybody can who may write in the folder."""
    database, snapshot = ledger.paths.database, ledger.paths.snapshot
    if copy:
        snapshot.write_bytes(database.read_bytes())
    seal = read_seal(snapshot)
    assert seal is not None
    digests = {"ledger_sha256": sha256_file(database), "snapshot_sha256": sha256_file(snapshot)}
    fields = asdict(replace(seal, **digests))
    seal_path(snapshot).write_bytes(canonical_json({**fields, "seal_sha256": sha256_json(fields)}) + b"\n")


def _named(report: VerificationReport) -> set[str]:
    return {problem.subject for problem in report.problems if problem.kind == "schema_changed"}


def _change(path: Path, statements: str) -> None:
    with duckdb.connect(str(path)) as connection:
        for each in statements.split("; "):
            connection.execute(each)


@pytest.mark.parametrize("kind", FOREIGN)
def test_a_foreign_object_of_any_kind_is_named_and_refused_by_readers(kind: str, story_ledger: Ledger) -> None:
    statements, name = FOREIGN[kind]
    _change(story_ledger.paths.database, statements)
    seal_anew(story_ledger)
    assert name in _named(verify_ledger(story_ledger))
    with pytest.raises(LedgerError, match="is not as gradtrail defines it"):
        run_sql(story_ledger.paths.snapshot, "SELECT 1")
    with pytest.raises(LedgerError, match="is not as gradtrail defines it"), story_ledger.read():
        pass
    with pytest.raises(LedgerError, match="is not as gradtrail defines it"), story_ledger.transaction():
        pass


@pytest.mark.parametrize("kind", ["table", "view", "macro with the name of a function", "comment on a column"])
def test_a_foreign_object_in_the_snapshot_alone_is_named(kind: str, story_ledger: Ledger) -> None:
    statements, name = FOREIGN[kind]
    _change(story_ledger.paths.snapshot, statements)
    seal_anew(story_ledger, copy=False)
    assert _named(verify_ledger(story_ledger)) == {f"snapshot snapshot.duckdb: {name}"}
    with pytest.raises(LedgerError, match="is not as gradtrail defines it"):
        story_ledger.read_snapshot()
    with story_ledger.read():
        pass  # the ledger itself is as it was


def test_no_macro_answers_for_a_system_function(story_ledger: Ledger) -> None:
    names = ["tables", "views", "functions", "triggers", "types", "sequences", "indexes", "schemas", "columns"]
    for name in names:
        empty = f"CREATE MACRO duckdb_{name}() AS TABLE SELECT * FROM system.main.duckdb_{name}() LIMIT 0"  # noqa: S608
        _change(story_ledger.paths.database, empty)
    _change(story_ledger.paths.database, "CREATE MACRO max(x) AS 1")
    seal_anew(story_ledger)
    report = verify_ledger(story_ledger)
    assert _named(report) == {"max", *(f"duckdb_{name}" for name in names)}
    assert report.checked["rows"] > 0  # and every row was read


def test_a_row_changed_behind_macros_of_functions_that_checks_use_is_named(
    story_ledger: Ledger, tamper: Tamper
) -> None:
    tamper(
        story_ledger,
        "UPDATE finding SET severity = 'info' WHERE position = 0",
        "CREATE MACRO starts_with(a, b) AS true",
        "CREATE MACRO count(x) AS 1",
    )
    seal_anew(story_ledger)
    report = verify_ledger(story_ledger)
    assert _named(report) == {"starts_with", "count"}
    assert [each.subject[:9] for each in report.problems if each.kind == "row_changed"] == ["finding ["]


def test_a_snapshot_edited_together_with_its_seal_is_named_by_row(story_ledger: Ledger, tamper: Tamper) -> None:
    tamper(
        Ledger(story_ledger.paths.snapshot, story_ledger.paths.snapshot),
        "UPDATE example SET attributes = MAP {'licence': 'other'} WHERE example_id = 'train-03'",
    )
    seal_anew(story_ledger, copy=False)
    [problem] = verify_ledger(story_ledger).problems
    assert problem.kind == "row_changed"
    assert problem.subject.startswith("snapshot snapshot.duckdb: example [")
    assert '"train-03"' in problem.subject


@pytest.mark.parametrize("name", ["event", "share", "row_commitment"])
def test_rows_dropped_from_the_snapshot_are_named(name: str, story_ledger: Ledger, tamper: Tamper) -> None:
    tamper(Ledger(story_ledger.paths.snapshot, story_ledger.paths.snapshot), f"DELETE FROM {name}")  # noqa: S608
    seal_anew(story_ledger, copy=False)
    problems = verify_ledger(story_ledger).problems
    assert problems
    assert all(problem.subject.startswith("snapshot snapshot.duckdb: ") for problem in problems)


def test_a_snapshot_of_another_history_is_named(story, story_ledger: Ledger, tmp_path: Path) -> None:
    other = Ledger(tmp_path / "other" / "ledger.duckdb", tmp_path / "other" / "snapshot.duckdb")
    story.record(other)
    story_ledger.paths.snapshot.write_bytes(other.paths.database.read_bytes())
    seal_anew(story_ledger, copy=False)
    [problem] = verify_ledger(story_ledger).problems
    assert problem.kind == "event_changed"
    assert "is not the one in its seal" in problem.message


def test_a_log_of_changes_beside_the_snapshot_is_named(story_ledger: Ledger) -> None:
    story_ledger.paths.snapshot.with_name("snapshot.duckdb.wal").write_bytes(b"")
    assert any("a log of changes" in each.message for each in verify_ledger(story_ledger).problems)


def test_an_older_snapshot_of_a_ledger_that_grew_is_fine(story_ledger: Ledger) -> None:
    story_ledger.record_quarantine("inbox", "later", "no label")
    report = verify_ledger(story_ledger)
    assert report.ok
    assert report.checked["rows of the snapshot"] == report.checked["rows"] - 1


def test_a_file_that_passed_is_looked_at_again_once_it_was_written(story_ledger: Ledger) -> None:
    snapshot = story_ledger.paths.snapshot
    for _ in range(2):
        assert "finding (table)" in schema_text(snapshot)
    _change(snapshot, "CREATE TABLE notes (text VARCHAR)")
    with pytest.raises(LedgerError, match="notes: the table does not belong to the ledger"):
        schema_text(snapshot)


def test_the_kept_digest_of_the_definitions_is_that_of_the_schema() -> None:
    kept = json.loads((Path(definitions.__file__).parents[1] / "schema" / "definitions.json").read_text())
    assert kept == definitions.kept_digest(), "Run `python scripts/definitions.py`, and commit what it writes"


def test_a_copy_of_the_seal_kept_elsewhere_shows_a_history_that_was_cut(
    story_ledger: Ledger, tamper: Tamper, tmp_path: Path
) -> None:
    kept = tmp_path / "kept.json"
    kept.write_bytes(seal_path(story_ledger.paths.snapshot).read_bytes())
    assert verify_ledger(story_ledger, seals=[kept]).checked["seals kept elsewhere"] == 1
    story_ledger.record_quarantine("inbox", "later", "no label")
    story_ledger.publish_snapshot()
    assert verify_ledger(story_ledger, seals=[kept]).ok
    evidence = ["audit", "audit_output", "audit_index", "attribution", "share", "example_influence", "finding"]
    tables = (*evidence, "group_contribution", "row_commitment", "report", "quarantine")
    tamper(
        story_ledger,
        "DELETE FROM event WHERE sequence > 8",
        *(f"DELETE FROM {name} WHERE event_sequence > 8" for name in tables),  # noqa: S608
    )
    for path in (story_ledger.paths.snapshot, seal_path(story_ledger.paths.snapshot)):
        path.unlink()
    assert verify_ledger(story_ledger).ok
    [problem] = verify_ledger(story_ledger, seals=[kept]).problems
    assert (problem.kind, problem.subject) == ("event_missing", "events 9 to 10")
    assert str(kept) in problem.message


def test_a_copy_of_the_seal_shows_another_history(story, story_ledger: Ledger, tmp_path: Path) -> None:
    other = Ledger(tmp_path / "other" / "ledger.duckdb", tmp_path / "other" / "snapshot.duckdb")
    story.record(other)
    other.publish_snapshot()
    [problem] = verify_ledger(other, seals=[seal_path(story_ledger.paths.snapshot)]).problems
    assert (problem.kind, problem.subject) == ("event_changed", "event 10")


def test_what_is_no_copy_of_a_seal_is_refused(story_ledger: Ledger, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="cannot be read"):
        verify_ledger(story_ledger, seals=[tmp_path / "absent.json"])
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(UsageError, match="is not as gradtrail wrote it"):
        verify_ledger(story_ledger, seals=[tmp_path / "other.json"])


def test_checking_what_a_snapshot_defines_creates_no_schema(
    story_ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(definitions, "create_schema", None)
    definitions._known.clear()
    with closing(story_ledger.read_snapshot()) as connection:
        assert connection.execute("SELECT count(*) FROM audit").fetchall() == [(1,)]
