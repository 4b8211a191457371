from __future__ import annotations

import json
from pathlib import Path

import pytest

pytestmark = pytest.mark.ci  # races in processes of their own

ENVIRONMENT = {"measured_at", "commit", "cpu", "cores", "threads", "versions", "python", "load_before"}
RUNS = {
    "index": ["index.py", "--tiny", "--no-peers", "--repetitions", "1", "--turn", "0"],
    "score": ["score.py", "--tiny", "--dtypes", "int8", "--repetitions", "1"],
    "peers": ["peer_oracles.py", "--stored"],
}


@pytest.fixture(scope="module")
def results(tmp_path_factory, run_scripts):
    folder = tmp_path_factory.mktemp("results")
    run_scripts(*([*given, "--threads", "1", "--output", str(folder / f"{name}.json")] for name, given in RUNS.items()))
    return folder


def read(folder: Path, name: str) -> list[dict]:
    content = json.loads((folder / f"{name}.json").read_text())
    assert set(content) == {"environment", "rows"}
    assert set(content["environment"]) >= ENVIRONMENT
    assert content["environment"]["threads"] == 1
    assert all({"model", "engine"} <= set(row) for row in content["rows"])
    return content["rows"]


def test_the_race_of_indexing_measures_every_model_against_both_yardsticks(results):
    rows = read(results, "index")
    assert {row["model"] for row in rows} == {"gpt", "cnn", "mlp"}
    for row in rows:
        assert row["examples_per_second"] > 0
        assert {"ratio_to_ceiling", "ratio_to_training_step", "covers", "seconds"} <= set(row)
    ceilings = [row for row in rows if row["engine"].startswith("ceiling:")]
    assert [row["ratio_to_ceiling"] for row in ceilings] == [1, 1, 1]
    assert {"gradtrail", "gradtrail, checked and sealed"} <= {row["engine"] for row in rows if row["model"] == "mlp"}


@pytest.mark.slow  # three fresh processes
def test_workers_that_share_an_index_race_as_one_engine(tmp_path, run_scripts):
    options = ["--tiny", "--no-peers", "--repetitions", "1", "--turn", "0", "--models", "mlp", "--threads", "2"]
    run_scripts(["index.py", *options, "--output", str(tmp_path / "index.json")])
    rows = {row["engine"]: row for row in json.loads((tmp_path / "index.json").read_text())["rows"]}
    assert rows["gradtrail, 2 workers"]["examples"] == rows["gradtrail"]["examples"] == 16


def test_scoring_is_timed_against_a_scan_and_a_product_with_its_peak_memory(results):
    (row,) = read(results, "score")
    whole, parts = row["seconds"], row["seconds_of_bare_scan"] + row["seconds_of_bare_product"]
    assert row["time_over_scan_and_product"] == pytest.approx(whole / parts, rel=0.2)
    assert row["peak_mib"] >= row["mib_before_the_pass"] > 0
    assert row["dtype"] == "int8"


def test_our_scores_are_those_of_peers(results):
    rows = {row["method"]: row for row in read(results, "peers")}
    assert set(rows) == {"ekfac", "trak"}
    assert all(row["holds"] and row["relative_difference"] <= row["wanted"] for row in rows.values())


def test_the_page_says_where_a_peer_is_faster_and_where_one_cannot_run(results, tmp_path, run_scripts):
    content = json.loads((results / "index.json").read_text())
    ours = next(row for row in content["rows"] if row["engine"] == "gradtrail" and row["model"] == "gpt")
    rate = 2 * ours["examples_per_second"]
    faster = {**ours, "engine": "dattri 0.3.0 LoGra", "examples_per_second": rate, "ratio_of_gradtrail_to_it": 0.5}
    content["rows"] += [faster, {"model": "cnn", "engine": "bergson 2.5.1", "unavailable": "no convolution"}]
    for name in RUNS:
        (tmp_path / f"{name}.json").write_bytes((results / f"{name}.json").read_bytes())
    (tmp_path / "index.json").write_text(json.dumps(content))
    run_scripts(["document.py", "--results", str(tmp_path), "--docs", str(tmp_path)])
    page = (tmp_path / "benchmarks.md").read_text()
    assert "**slower: 0.50 × as fast**" in page
    assert "| GPT: against dattri 0.3.0 LoGra | 1.00 | 0.50 | **missed** |" in page
    assert "| bergson 2.5.1 | — | — | — | cannot do it | no convolution |" in page
    assert (tmp_path / "benchmarks.svg").stat().st_size > 0
