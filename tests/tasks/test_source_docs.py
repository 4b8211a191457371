"""What docs/sources.md shows works as it stands there."""

import re
import tomllib
from pathlib import Path

import pytest

from gradtrail.nouns import FATES
from gradtrail.settings import load_settings
from gradtrail.storage.sources.config import SourceConfig
from gradtrail.tasks.collecting import collect_source

PAGE = (Path(__file__).parents[2] / "docs" / "sources.md").read_text("utf-8")


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def test_the_settings_of_the_page_are_read_and_unknown_keys_are_not(tmp_path, monkeypatch):
    [text] = blocks("toml")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gradtrail.toml").write_text(text)
    workspace = load_settings().workspace()
    assert [source.name for source in workspace.output_sources] == ["inbox", "bucket", "answers", "production"]
    assert workspace.home_source.sample_share == 0.1
    assert list(workspace.sources) == [SourceConfig(**table) for table in _with_tuples(tomllib.loads(text)["sources"])]
    for wrong, cause in (
        (text.replace("most_per_run", "most_each_run"), "most_each_run"),
        (text.replace('sampling = "random"', 'sampling = "first"'), "sampling 'first'"),
        (text.replace('name = "bucket"', 'name = "answers"'), "Two sources are called 'answers'"),
    ):
        (tmp_path / "gradtrail.toml").write_text(wrong)
        with pytest.raises(Exception, match=cause) as caught:
            load_settings().workspace()
        assert caught.value.exit_code == 2


def test_the_page_says_what_each_fate_of_an_output_means():
    [table] = re.findall(r"\| An output is \| when \|\n\|---\|---\|\n(.*?)\n\n", PAGE, re.DOTALL)
    rows = dict(line.strip("| ").split(" | ") for line in table.splitlines())
    assert rows == {fate.replace("_", " "): meaning for fate, meaning in FATES.items()}


def _with_tuples(tables):
    return [{key: tuple(value) if isinstance(value, list) else value for key, value in t.items()} for t in tables]


def test_the_call_of_the_page_is_collected_and_its_question_answered(known, tmp_path, monkeypatch):
    known.ingest(3)
    monkeypatch.setenv("GRADTRAIL_HOME", known.workspace.home)
    monkeypatch.chdir(tmp_path)
    [code] = blocks("python")
    exec(compile(code, "docs/sources.md", "exec"), {})  # noqa: S102 - our own page
    collected = collect_source.fn(known.workspace, known.workspace.home_source)
    assert collected.new_output_ids == ("inbox:request-1",)
    [question] = blocks("sql")
    [(source, _, taken, seen)] = known.sql(question)
    assert (source, taken, seen) == ("inbox", 1, 1)
