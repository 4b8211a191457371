"""Flows tell an OpenLineage catalogue what they did, once, and do not fail when it is away."""

import json
from dataclasses import replace
from pathlib import Path

from gradtrail.flows.index import index
from gradtrail.flows.ingest import ingest
from gradtrail.tasks.alert.announcements import CURSOR
from gradtrail.tasks.announcing import announce


def test_a_catalogue_that_was_away_gets_what_it_missed_and_nothing_twice(tiny, prefect_server, tmp_path):
    tiny.register()
    away = replace(tiny.workspace, openlineage="http://127.0.0.1:9")
    assert ingest(away, "tiny@champion").new
    assert not (Path(tiny.workspace.home) / CURSOR).exists()

    file = tmp_path / "lineage.jsonl"
    present = replace(tiny.workspace, openlineage=str(file))
    [outcome] = index(present, "tiny@champion")
    assert outcome.new
    jobs = [json.loads(line)["job"]["name"] for line in file.read_text().splitlines()]
    assert jobs == ["ingest.tiny", "ingest.tiny", "index.tiny", "index.tiny"]
    assert announce.fn(present) == 0
    assert len(file.read_text().splitlines()) == 4


def test_without_a_catalogue_nothing_is_sent(tiny):
    assert announce.fn(tiny.workspace) == 0
