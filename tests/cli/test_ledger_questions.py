"""What people ask the ledger, on the demo: the cookbook, the commands, and all scores joined with it."""

from __future__ import annotations

import csv
import json
import re
import shlex
import sys
from io import StringIO
from pathlib import Path

import pyarrow.parquet
import pytest
from typer.testing import CliRunner

import gradtrail
from gradtrail.cli import app, main
from gradtrail.errors import NotFoundError, UsageError
from gradtrail.lineage.sql.answering import run_sql

PAGE = (Path(__file__).parents[2] / "docs" / "cookbook.md").read_text("utf-8")
QUESTIONS = re.findall(r"### (\d+)\. (.*?)\n\n```sql\n(.*?)```\n\nColumns: (.*?)\.(?: \((.*?)\))?\n", PAGE, re.DOTALL)


@pytest.fixture(scope="module")
def trail(demo):
    return gradtrail.connect(demo.workspace.home)


@pytest.fixture(scope="module")
def ids(trail):
    """An audit of the demo, one of its outputs, and the last audit, which is the same where there is one."""
    query = """
        SELECT audit_id, output_id, (SELECT max(audit_id) FROM audit) AS other_id
        FROM audit_output ORDER BY ALL LIMIT 1"""
    return trail.sql(query).arrow().to_pylist()[0]


def _run(demo, *arguments: str) -> str:
    result = CliRunner().invoke(app, [*arguments, "--home", str(demo.settings.home)])
    assert result.exit_code == 0, f"{result.output}{result.exception}"
    return result.stdout


def _known(ids):
    """The ids that the pages show, and those they stand for here."""
    return {"inbox:case-000": ids["output_id"], "3f2a91c0": ids["audit_id"][:8], "8cfd3e07": ids["other_id"][:8]}


def test_the_cookbook_has_twenty_questions():
    assert [int(number) for number, *_ in QUESTIONS] == list(range(1, 21))


@pytest.mark.parametrize("place", range(20))
def test_each_question_of_the_cookbook_has_its_columns_and_an_answer(place, demo, ids):
    _, _, statement, columns, remark = QUESTIONS[place]
    for shown, real in _known(ids).items():
        statement = statement.replace(shown, real)
    answer = run_sql(demo.workspace.snapshot, statement)
    assert answer.column_names == re.findall(r"`(\w+)`", columns)
    assert answer.num_rows > 0 or remark


def test_influence_by_a_foreseen_attribute_is_the_audits_own(trail, ids):
    for attribute in ("source", "licence"):
        own = trail.sql(
            "SELECT output_id, side, value, share, training_share FROM share WHERE audit_id = ? AND attribute = ?",
            parameters=[ids["audit_id"], attribute],
        ).arrow()
        expected = {(row["output_id"], row["side"], row["value"]): row for row in own.to_pylist()}
        found = {
            (each.output_id, each.side, each.value): each for each in trail.influence_by(ids["audit_id"], attribute)
        }
        assert found.keys() == expected.keys()
        for key, row in expected.items():
            assert found[key].share == pytest.approx(row["share"], rel=1e-6)
            assert found[key].training_share == pytest.approx(row["training_share"], rel=1e-12)


def test_influence_by_an_attribute_that_nobody_has_is_one_share_of_everything(trail, ids):
    shares = trail.influence_by(ids["audit_id"], "colour")
    assert {each.value for each in shares} == {""}
    assert all(each.share == pytest.approx(1.0) == each.training_share for each in shares)


def test_all_scores_stand_beside_the_ledger_and_may_be_read_twice(trail, ids):
    found = trail.sql(
        """
        SELECT attribution.score AS kept, score.score AS again, audit_output.proponent_mass AS mass, total.summed
        FROM attribution
        JOIN score USING (output_id, example_id)
        JOIN audit_output USING (audit_id, output_id)
        JOIN (SELECT output_id, sum(greatest(score, 0)) AS summed FROM score GROUP BY ALL) AS total USING (output_id)
        WHERE audit_id = ?""",
        parameters=[ids["audit_id"]],
        scores_of=ids["audit_id"][:10],
    ).arrow()
    assert found.num_rows > 10
    assert found["again"].to_pylist() == pytest.approx(found["kept"].to_pylist(), rel=1e-5, abs=1e-12)
    assert found["summed"].to_pylist() == pytest.approx(found["mass"].to_pylist(), rel=1e-6)
    kept = trail.sql("SELECT count(*) AS n, min(len(vector)) AS width FROM query", scores_of=ids["audit_id"]).arrow()
    assert kept.to_pylist()[0]["width"] > 1
    with pytest.raises(NotFoundError, match="not an audit"):
        trail.sql("FROM score", scores_of=ids["output_id"])
    with pytest.raises(UsageError, match="does not exist"):
        trail.sql("FROM score")


def test_sql_hands_answers_on_as_csv_json_and_parquet(demo, tmp_path):
    statement = "SELECT example_id, attributes, position FROM example ORDER BY position LIMIT 3"
    rows = list(csv.DictReader(StringIO(_run(demo, "sql", statement, "--format", "csv"))))
    parsed = json.loads(_run(demo, "sql", statement, "--json"))
    assert parsed == json.loads(_run(demo, "sql", statement, "--format", "json"))
    assert [json.loads(row["attributes"]) for row in rows] == [row["attributes"] for row in parsed]
    assert set(parsed[0]["attributes"]) >= {"source", "licence"}
    _run(demo, "sql", statement, "--output", str(tmp_path / "answer.parquet"))
    table = pyarrow.parquet.read_table(tmp_path / "answer.parquet")
    assert table["example_id"].to_pylist() == [row["example_id"] for row in parsed]
    _run(demo, "sql", statement, "--output", str(tmp_path / "answer.csv"))
    assert len((tmp_path / "answer.csv").read_text().splitlines()) == 4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["answer.csv", "answer.parquet"]


def test_the_snapshot_is_exported_as_parquet_and_an_export_is_replaced_whole(demo, tmp_path):
    folder = tmp_path / "export"
    for _ in range(2):
        written = json.loads(_run(demo, "export", "parquet", str(folder), "--json"))
    counted = run_sql(demo.workspace.snapshot, "SELECT count(*) AS n FROM output_lineage").to_pylist()[0]["n"]
    assert written["rows"]["output_lineage"] == counted
    assert pyarrow.parquet.read_metadata(folder / "output_lineage.parquet").num_rows == counted
    assert {f"{name}.parquet" for name in written["rows"]} | {"export.json"} == {path.name for path in folder.iterdir()}
    assert [path.name for path in tmp_path.iterdir()] == ["export"]


def test_the_blast_radius_names_what_a_source_touched_and_what_is_unseen(demo, trail, ids):
    found = json.loads(_run(demo, "blast-radius", "--source", "web-crawl", "--json"))
    assert found["examples"] == trail.sql(
        "SELECT count(*) AS n FROM example WHERE attributes['source'] = 'web-crawl'"
    ).arrow()["n"].to_pylist()[0]  # fmt: skip
    kinds = {each["kind"] for each in found["touched"]}
    assert kinds >= {"dataset_version", "model_version", "audit", "output", "report"}
    assert "scores that were not kept" in {each["what"] for each in found["unseen"]}
    first = (
        trail.sql("SELECT arg_min(audit_id, event_sequence) AS audit_id FROM audit").arrow()["audit_id"].to_pylist()[0]
    )
    radius = trail.blast_radius("source", "web-crawl", as_of=first[:8])
    assert "report" not in {each.kind for each in radius.touched}
    assert set(radius.ids("output")) <= {each["id"] for each in found["touched"]}
    example = trail.sql("SELECT example_id FROM attribution ORDER BY rank, score DESC LIMIT 1").arrow()
    example_id = example["example_id"].to_pylist()[0]
    assert f"1 examples with example_id {example_id}" in _run(demo, "blast-radius", "--example", example_id)
    assert "Not seen:" in _run(demo, "blast-radius", "--attribute", "licence=unknown")


def test_two_audits_are_compared(demo, ids):
    short = ids["audit_id"][:10]
    lines = json.loads(_run(demo, "compare", short, short, "--json"))["lines"]
    assert all(line["same"] for line in lines if line["name"] != "in this audit only")
    assert {"method", "outputs", "share"} <= {line["aspect"] for line in lines}
    assert "web-crawl" in _run(demo, "compare", short, short)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["blast-radius"], "one thing to start from"),
        (["blast-radius", "--source", "a", "--example", "b"], "one thing to start from"),
        (["blast-radius", "--attribute", "licence"], "one thing to start from"),
        (["blast-radius", "--source", 'it\'s "nobody"; DROP TABLE example'], "No example in the ledger has source"),
        (["blast-radius", "--source", "web-crawl", "--as-of", "ffff'"], "There is no audit"),
        (["compare", "ffffffffff", "ffffffffff"], "There is no audit 'ffffffffff'"),
        (["lineage", "train'; --", "--up"], "Nothing in the ledger has the id"),
        (["sql", "SELECT 1", "--format", "parquet"], "not text to print"),
        (["sql", "SELECT 1", "--output", "answer.txt"], "not for the file"),
        (["sql", "SELECT 1", "--output", "/proc/answer.csv"], "cannot be written"),
        (["export", "parquet", "/proc/export"], "left nothing"),
    ],
)
def test_what_cannot_be_asked_is_refused_in_two_lines(demo, arguments, said, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gradtrail", *arguments, "--home", str(demo.settings.home)])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code != 0
    written = capsys.readouterr().err
    assert said in written.replace("\n", " ")
    assert "Traceback" not in written


def test_an_export_never_replaces_a_folder_of_something_else(demo, tmp_path):
    (tmp_path / "mine.txt").write_text("precious")
    result = CliRunner().invoke(app, ["export", "parquet", str(tmp_path), "--home", str(demo.settings.home)])
    assert isinstance(result.exception, UsageError)
    assert (tmp_path / "mine.txt").read_text() == "precious"


def test_the_commands_of_the_page_work_as_written(demo, ids, tmp_path, monkeypatch):
    page = (Path(__file__).parents[2] / "docs" / "ledger.md").read_text("utf-8")
    block = re.search(r"<!-- commands -->\n```bash\n(.*?)```", page, re.DOTALL)[1]
    commands = [shlex.split(line) for line in block.splitlines()]
    assert len(commands) == 7
    monkeypatch.chdir(tmp_path)
    for _, *arguments in commands:
        assert _run(demo, *(_known(ids).get(argument, argument) for argument in arguments))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ledger-parquet", "shares.parquet"]
