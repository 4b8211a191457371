"""The measurements of faults and of whole audits: they run, count what they say, and the page shows it."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from prefect.settings import PREFECT_API_URL

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def run(script, *arguments):
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / script), *arguments],
        capture_output=True, text=True, check=False, env={**os.environ, "PREFECT_API_URL": PREFECT_API_URL.value()},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.fixture
def page(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    specification = importlib.util.spec_from_file_location("document_production", BENCHMARKS / "document_production.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def faults(folder, *options):
    run("faults.py", "--absences", "0", "--output", str(folder / "faults.json"), *options)
    rows = json.loads((folder / "faults.json").read_text())["rows"]
    assert all((row["lost"], row["duplicated"], row["problems"]) == (0, 0, 0) for row in rows)
    return rows


@pytest.mark.ci  # some forty processes, each of which runs a flow
def test_three_seeded_kills_of_each_flow_lose_nothing_and_duplicate_nothing(prefect_server, tmp_path):
    flows = ["ingest", "index", "calibrate", "watch"]  # audits are killed in tests/flows/test_kills.py
    rows = faults(tmp_path, "--flows", *flows, "--trials", "3", "--other-trials", "0")
    assert [(row["flow"], row["trials"]) for row in rows] == [(flow, 3) for flow in flows]
    assert sum(row["interrupted"] for row in rows) > 0


@pytest.mark.slow  # some twenty processes, each of which runs a flow
def test_what_comes_twice_late_or_is_deleted_is_audited_once(prefect_server, tmp_path):
    assert len(faults(tmp_path, "--flows", "--other-trials", "1")) == 4


@pytest.mark.slow  # a process for each figure
def test_a_whole_audit_is_measured_by_outputs_and_training_examples(prefect_server, tmp_path):
    options = [
        "--outputs",
        "3",
        "--training-examples",
        "20",
        "30",
        "--repetitions",
        "2",
        "--output",
        str(tmp_path / "audit.json"),
    ]
    run("audit.py", *options)
    content = json.loads((tmp_path / "audit.json").read_text())
    assert [(row["outputs"], row["training_examples"]) for row in content["rows"]] == [(3, 20), (3, 30)]
    assert all(row["outputs_per_second"] > 0 and row["peak_memory_mb"] > 0 for row in content["rows"])
    assert [len(row["memory_mb_by_fifth_of_each_run"]) for row in content["rows"]] == [2, 2]
    assert set(content["environment"]["seconds_of_an_empty_run"]) == {"20", "30"}


def test_the_page_names_what_was_lost_and_an_empty_run_that_takes_too_long(page):
    described = {"measured_at": "2026-11-22T04:00:00", "load_before": 0.1, "outputs_an_audit": 12}
    row = {
        "flow": "audit",
        "fault": "SIGKILL",
        "trials": 20,
        "interrupted": 18,
        "lost": 1,
        "duplicated": 2,
        "problems": 3,
    }
    assert "| audit | SIGKILL | 20 | 18 | 1 | 2 | 3 |" in page.faults_section({"environment": described, "rows": [row]})
    costs = {**described, "seconds_of_an_empty_run": {"1000": 2.5}, "wanted_seconds_of_an_empty_run": 2.0}
    assert "at most 2 s: **missed**" in page.audits_section({"environment": costs, "rows": []})
    rows = [
        {
            "training_examples": examples,
            "outputs": outputs,
            "outputs_per_second": outputs / seconds,
            "seconds": seconds,
            "peak_memory_mb": 500 + examples // 100,
            "memory_mb_by_fifth_of_each_run": [[300, 500, 505, 500, end] for end in (last, last + 90, last - 20)],
            "largest_report_mb": 1.0,
        }
        for examples, outputs, seconds, last in (
            (100, 10, 2.0, 900),
            (100, 50, 4.0, 900),
            (100, 90, 6.0, 514),
            (1000, 10, 3.0, 900),
            (1000, 50, 5.0, 900),
        )
    ]
    said = "With 50 outputs, 10 times as many training examples take 1.25 times as long and 9 MB more."
    assert said in page.audits_section({"environment": costs, "rows": rows})
    page_of_flat = page.audits_section({"environment": costs, "rows": rows})
    assert (
        "in the median of runs, and of each: +14 (+14, +104, -6) MB. Wanted: flat, here within 3%: yes." in page_of_flat
    )
    rows[2]["memory_mb_by_fifth_of_each_run"][0][-1] = 516
    assert "within 3%: **missed**" in page.audits_section({"environment": costs, "rows": rows})
