from __future__ import annotations

import time

import pytest

from gradtrail.errors import NotFoundError, UsageError
from gradtrail.lineage.ledger.writing import Ledger
from gradtrail.lineage.schema.tables import TABLES
from gradtrail.lineage.sql.answering import run_sql, schema_text


def test_a_question_is_answered_as_arrow(story_ledger: Ledger) -> None:
    table = run_sql(story_ledger.paths.snapshot, "SELECT output_id, target FROM output ORDER BY output_id LIMIT 2;")
    assert table.to_pylist() == [
        {"output_id": "inbox:0", "target": "emitted"},
        {"output_id": "inbox:1", "target": "emitted"},
    ]


@pytest.mark.parametrize(
    "statement",
    [
        "FROM output",
        "WITH o AS (FROM output) SELECT count(*) FROM o",
        "VALUES (1)",
        "DESCRIBE output",
        "SHOW TABLES",
        "SUMMARIZE share",
        "EXPLAIN SELECT 1",
        "SELECT * FROM upstream('inbox:0')",
        "SELECT attributes['licence'] FROM example",
        "SELECT feature_config->>'$.seed' FROM gradient_index",
        "-- a remark; with a semicolon\nSELECT 1",
    ],
)
def test_every_reading_form_works(statement: str, story_ledger: Ledger) -> None:
    assert run_sql(story_ledger.paths.snapshot, statement).num_rows >= 1


def test_an_empty_answer_keeps_its_columns(story_ledger: Ledger) -> None:
    table = run_sql(story_ledger.paths.snapshot, "SELECT output_id FROM output WHERE false")
    assert (table.num_rows, table.column_names) == (0, ["output_id"])


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("INSERT INTO refusal VALUES ('x')", "INSERT statement is refused"),
        ("DELETE FROM output", "DELETE statement is refused"),
        ("UPDATE output SET source = 'x'", "UPDATE statement is refused"),
        ("DROP TABLE output", "DROP statement is refused"),
        ("CREATE TABLE memory.main.x AS SELECT 1", "CREATE statement is refused"),
        ("COPY output TO '/tmp/stolen.csv'", "COPY statement is refused"),
        ("EXPORT DATABASE '/tmp/stolen'", "EXPORT statement is refused"),
        ("ATTACH '/tmp/other.duckdb'", "ATTACH statement is refused"),
        ("INSTALL httpfs", "statement is refused"),
        ("LOAD httpfs", "statement is refused"),
        ("SET enable_external_access = true", "SET statement is refused"),
        ("PRAGMA database_list", "PRAGMA statement is refused"),
        ("CALL pragma_version()", "CALL statement is refused"),
        ("BEGIN", "TRANSACTION statement is refused"),
        ("SELECT 1; DROP TABLE output", "This is 2 statements"),
        ("", "This is 0 statements"),
        ("SELECT * FROM read_csv('/etc/passwd')", "disabled by configuration"),
        ("SELECT * FROM read_text('/etc/passwd')", "disabled by configuration"),
        ("SELECT * FROM glob('/*')", "disabled by configuration"),
        ("SELECT * FROM read_parquet('https://example.org/x.parquet')", ""),
        ("SELECT * FROM '/etc/passwd'", ""),
        ("EXPLAIN ANALYZE SELECT * FROM read_text('/etc/passwd')", "disabled by configuration"),
        ("SELEC 1", "syntax error"),
        ("SELECT nothing FROM output", 'column "nothing" not found'),
        ("SELECT * FROM outputs", "output"),
        ("FROM statement", "does not exist"),
        ("FROM range(100000000000)", "result is larger than"),
        ("SELECT error('on purpose')", "on purpose"),
    ],
)
def test_what_writes_reaches_out_or_fails_is_refused_with_a_reason(
    statement: str, message: str, story_ledger: Ledger
) -> None:
    before = story_ledger.paths.snapshot.read_bytes()
    with pytest.raises(UsageError) as raised:
        run_sql(story_ledger.paths.snapshot, statement, timeout_seconds=10)
    assert message in raised.value.what
    assert "\n" not in raised.value.what
    assert "LINE 1" not in raised.value.what
    assert raised.value.remedy
    assert story_ledger.paths.snapshot.read_bytes() == before


@pytest.mark.parametrize(
    "statement",
    [
        "WITH RECURSIVE t(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM t) SELECT count(*) FROM t",
        "SELECT count(*) FROM range(1000000000) AS a, range(1000000000) AS b WHERE a.range + b.range = 7",
    ],
)
def test_a_statement_that_never_ends_is_stopped(statement: str, story_ledger: Ledger) -> None:
    started = time.perf_counter()
    with pytest.raises(UsageError, match=r"stopped after 0\.3 s"):
        run_sql(story_ledger.paths.snapshot, statement, timeout_seconds=0.3)
    assert time.perf_counter() - started < 5


def test_memory_is_bounded(story_ledger: Ledger) -> None:
    with pytest.raises(UsageError, match="Out of Memory"):
        run_sql(
            story_ledger.paths.snapshot,
            "SELECT list(a.range::VARCHAR || b.range) FROM range(10000) AS a, range(10000) AS b",
            memory_limit="64MB",
        )


def test_without_a_snapshot_the_remedy_is_named(empty_ledger: Ledger) -> None:
    with pytest.raises(NotFoundError, match="gradtrail ingest"):
        run_sql(empty_ledger.paths.snapshot, "SELECT 1")
    with pytest.raises(NotFoundError, match="gradtrail ingest"):
        schema_text(empty_ledger.paths.snapshot)


def test_the_schema_reads_as_documentation(story_ledger: Ledger) -> None:
    text = schema_text(story_ledger.paths.snapshot)
    for name in TABLES:
        assert f"\n{name} (table): " in f"\n{text}"
    assert "output_lineage (view): The whole chain in one row" in text
    assert "score                  DOUBLE                   Positive: training on the example lowers the loss" in text
