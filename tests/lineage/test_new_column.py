"""A new column touches two places: a numbered file of the schema, and the noun that is written to it and read back."""

from __future__ import annotations

import filecmp
import os
import shutil
import subprocess
import sys
from pathlib import Path

import duckdb

from gradtrail.lineage.ledger.migrations import schema_differences
from gradtrail.lineage.ledger.writing import Ledger
from gradtrail.lineage.schema.files import (
    LAST_WITH_VIEWS,
    create_schema,
    definitions,
    definitions_sha256,
    newest_version,
    schema_files,
)
from gradtrail.lineage.schema.tables import TABLES

CHECKOUT = Path(__file__).resolve().parents[2]
NEXT = newest_version() + 1
NUMBERED = f"lineage/schema/{NEXT:03d}_region.sql"
NOUNS = "gradtrail/nouns.py"

SQL = f"""
-- Where an output was served.
--
-- Views and macros: {definitions_sha256()}
ALTER TABLE output ADD COLUMN region VARCHAR;
COMMENT ON COLUMN output.region IS 'Where the output was served; NULL before this version.';
"""

RECORD = """
import sys
from datetime import UTC, datetime
from pathlib import Path
from gradtrail.errors import DataError
from gradtrail.lineage.ledger.writing import Ledger
from gradtrail.lineage.read import queries
from gradtrail.lineage.schema.files import newest_version
from gradtrail.lineage.verify.verifying import verify_ledger
from gradtrail.nouns import Output

ledger = Ledger(Path(sys.argv[1]) / "ledger.duckdb", Path(sys.argv[1]) / "snapshot.duckdb")

def output(name, **more):
    return Output(f"inbox:{name}", "inbox", name, datetime(2026, 1, 2, tzinfo=UTC), "digits/1", "aa", **more)

def refuses(*outputs):
    try:
        ledger.record_outputs(outputs)
    except DataError as refusal:
        return "region" in str(refusal)
    return False

before = verify_ledger(ledger)
with ledger.read_unmigrated() as connection:
    [(old,)] = connection.execute("SELECT max(version) FROM schema_version").fetchall()
assert old == newest_version() - 1 and not before.problems, before
with ledger.read() as connection:
    old_outputs = queries.outputs_of(connection, "digits/1")
    assert old_outputs and {each.region for each in old_outputs} == {None}
    assert connection.execute("SELECT DISTINCT region FROM standing_region").fetchall() == [(None,)]
assert not ledger.record_outputs(old_outputs)
assert ledger.record_outputs([output("new", region="eu"), output("plain")])
assert not ledger.record_outputs([output("new", region="eu")])
assert refuses(output("new", region="us"))
with ledger.read() as connection:
    found = queries.outputs(connection, ["inbox:new", "inbox:plain"])
    assert found == [output("new", region="eu"), output("plain")]
    assert connection.execute("SELECT count(*) FROM standing_region WHERE region = 'eu'").fetchall() == [(1,)]
ledger.publish_snapshot()
assert not verify_ledger(ledger).problems
with ledger.transaction() as connection:
    connection.execute("DROP TRIGGER output_refuses_update ON output")
    connection.execute("UPDATE output SET region = 'us' WHERE output_id = 'inbox:new'")
kinds = {(problem.kind, problem.subject) for problem in verify_ledger(ledger).problems}
assert ("row_changed", 'output ["inbox:new"]') in kinds, kinds
print("done")
"""

VIEW = """CREATE OR REPLACE VIEW standing_region AS SELECT output_id, region FROM output;
COMMENT ON VIEW standing_region IS 'Outputs by region.';
"""


def _with_region(folder: Path) -> Path:
    """A copy of gradtrail whose outputs have a region."""
    ignored = shutil.ignore_patterns("__pycache__", "tests", "benchmarks", "docs", "examples", "deploy", ".*")
    shutil.copytree(CHECKOUT, folder, symlinks=True, ignore=ignored)
    (folder / NUMBERED).write_text(SQL)
    nouns = (folder / NOUNS).read_text("utf-8")
    last = '    payload_sha256: str\n    target: Target = "emitted"\n'
    assert nouns.count(last) == 1
    (folder / NOUNS).write_text(nouns.replace(last, f"{last}    region: str | None = None\n"))
    return folder


def _changed(folder: Path) -> set[str]:
    """The files of a copy that are not as in this checkout."""
    found = set()
    for path in folder.rglob("*.py"), folder.rglob("*.sql"):
        for each in path:
            name = each.relative_to(folder).as_posix()
            original = CHECKOUT / name
            if not original.is_file() or not filecmp.cmp(each, original, shallow=False):
                found.add(name)
    return found


def test_a_column_is_added_in_a_numbered_file_and_in_a_noun(story, empty_ledger: Ledger, tmp_path: Path) -> None:
    story.record(empty_ledger)
    empty_ledger.publish_snapshot()
    copy = _with_region(tmp_path / "copy")
    assert _changed(copy) == {NUMBERED, NOUNS}
    (copy / "lineage/schema/views/standing_region.sql").write_text(VIEW)
    finished = subprocess.run(
        [sys.executable, "-c", RECORD, str(empty_ledger.paths.database.parent)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(copy)},
        cwd=tmp_path,
    )
    assert finished.stdout == "done\n", finished.stderr


def test_views_and_macros_are_those_that_the_newest_numbered_file_says() -> None:
    newest = schema_files()[-1]
    said = f"-- Views and macros: {definitions_sha256()}"
    assert said in newest.text, f"Views or macros were changed: begin a numbered file with the line {said}"


def test_each_view_and_macro_has_the_file_of_its_name(story_ledger: Ledger) -> None:
    query = """
        SELECT view_name FROM duckdb_views() WHERE NOT internal
        UNION SELECT function_name FROM duckdb_functions() WHERE NOT internal AND macro_definition IS NOT NULL"""
    with story_ledger.read() as connection:
        assert {name for (name,) in connection.execute(query).fetchall()} == definitions().keys()


def test_views_that_another_version_created_are_created_anew(story_ledger: Ledger) -> None:
    with duckdb.connect(":memory:") as connection:
        create_schema(connection, LAST_WITH_VIEWS)
        connection.execute("CREATE OR REPLACE VIEW edge AS SELECT 1 AS other")
        assert schema_differences(connection, LAST_WITH_VIEWS).keys() == {"edge"}
        create_schema(connection, newest_version(), above=LAST_WITH_VIEWS)
        assert schema_differences(connection, newest_version()) == {}


def test_labels_are_columns_outside_of_the_key() -> None:
    for table in TABLES.values():
        assert table.labels <= set(table.schema.names) - set(table.key)
