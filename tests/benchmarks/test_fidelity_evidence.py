from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

pytestmark = pytest.mark.ci  # a small run of every measurement

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
CONDITIONS = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 40), "OMP_NUM_THREADS": "1"}
ROW = {"task", "engine", "method", "weighting", "metric", "steps", "value", "standard_error", "ceiling", "damping"}


def run(*arguments: str) -> str:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("OPENBLAS_")}
    command = [sys.executable, str(BENCHMARKS / arguments[0]), *arguments[1:]]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**kept, **CONDITIONS})
    assert done.returncode == 0, done.stderr
    return done.stdout


def measure(folder: Path, *tasks: str) -> str:
    options = ["--toy", "--no-peers", "--workers", "1", "--cache", str(folder / "cache")]
    return run("measure_fidelity.py", *options, "--tasks", *tasks, "--output", str(folder / "fidelity.json"))


def check(folder: Path, *tasks: str) -> None:
    text = (folder / "fidelity.json").read_text()
    content = json.loads(text)
    assert set(content) == {"environment", "rows"}
    assert [json.loads(line.rstrip(",")) for line in text.splitlines() if line.startswith('{"')] == content["rows"]
    assert set(content["environment"]["tasks"]) == set(tasks)
    for row in content["rows"]:
        assert set(row) >= ROW
        assert -1 <= row["value"] <= 1
        assert row["standard_error"] >= 0
        assert 0 <= row["ceiling"] <= 1
    for task in tasks:
        own = [row for row in content["rows"] if row["task"] == task]
        assert {row["metric"] for row in own} == {"fidelity_subset", "fidelity_loo", "lds"}
        assert {row["engine"] for row in own} == {"gradtrail", "gradtrail, five trainings", "baseline"}
        assert {row["weighting"] for row in own} == {"uniform", "self_supervised", "further_training", "retraining"}
        methods = {row["method"] for row in own}
        assert methods >= {"grad_dot", "tracin_cp", "influence", "influence_global", "horizon", "ekfac", "datainf"}
        assert "trak" in methods or task in {"diabetes", "language"}
        assert ("BM25" in methods) == (task == "language")


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fidelity")
    measure(folder, "cancer")
    return folder


def test_every_method_is_judged_under_every_weighting_against_measured_truths(measured):
    check(measured, "cancer")


def test_truths_are_taken_up_again_and_give_the_same_figures(measured, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in (measured / "cache").rglob("*.npy")}
    assert before
    said = run(
        "measure_fidelity.py", "--toy", "--no-peers", "--workers", "1", "--only-truths",
        "--cache", str(measured / "cache"), "--tasks", "cancer",
    )  # fmt: skip
    assert "cancer: subset 0 runs (0 s), loo 0 runs (0 s), retrained 0 runs (0 s)" in said
    assert before == {path: path.stat().st_mtime_ns for path in (measured / "cache").rglob("*.npy")}


def test_the_page_says_a_tie_and_a_loss_as_plainly_as_a_win(measured, tmp_path):
    for name in ("fidelity.json", "fidelity-sweep.json"):
        (tmp_path / name).write_bytes((measured / name).read_bytes())
    content = json.loads((measured / "fidelity-comparisons.json").read_text())
    verdict = {
        "compared": "best of ours against best peer", "task": "cancer", "metric": "lds", "steps": 6, "ours": "a",
        "ours_value": 0.5, "peer": "b", "peer_value": 0.6, "ceiling": 0.9, "difference": -0.1, "standard_error": 0.01,
        "closed": -0.33, "verdict": "behind",
    }  # fmt: skip
    content["rows"] += [verdict, {**verdict, "verdict": "tie"}, {**verdict, "verdict": "better"}]
    (tmp_path / "fidelity-comparisons.json").write_text(json.dumps(content))
    run("document_fidelity.py", "--results", str(tmp_path), "--docs", str(tmp_path))
    page = (tmp_path / "fidelity-evidence.md").read_text()
    assert all(f"| -33% | {said} |" in page for said in ("**behind**", "**tie**", "yes"))
    assert (tmp_path / "fidelity-by-training.svg").stat().st_size > 0
    assert (tmp_path / "fidelity-sweep.svg").stat().st_size > 0


def test_the_committed_page_is_that_of_the_committed_results(tmp_path):
    run("document_fidelity.py", "--docs", str(tmp_path))
    committed = BENCHMARKS.parent / "docs" / "fidelity-evidence.md"
    assert (tmp_path / committed.name).read_bytes() == committed.read_bytes()


def test_pictures_hold_text_and_short_numbers(measured, tmp_path):
    run("document_fidelity.py", "--results", str(measured), "--docs", str(tmp_path))
    for name in ("fidelity-by-training.svg", "fidelity-sweep.svg"):
        picture = (tmp_path / name).read_text()
        texts = "".join(ElementTree.fromstring(picture).itertext())  # noqa: S314 - of this repository
        assert "tabular classification" in texts
        drawn = re.sub(r'xlink:href="data:[^"]*"', "", picture)
        assert not re.search(r"\d\.\d{3}", drawn)
        assert "<g>" not in drawn


def test_a_lead_counts_when_it_closes_a_tenth_of_the_gap_beyond_its_error(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from fidelity.judgement import compare

    theirs = np.full(50, 0.5)
    noise = np.linspace(-0.05, 0.05, 50)
    assert compare(theirs + 0.1 + noise, theirs, 0.9).verdict == "better"
    assert compare(theirs + 0.02 + noise, theirs, 0.9).verdict == "ahead"
    assert compare(theirs + 0.001 + noise, theirs, 0.9).verdict == "tie"
    assert compare(theirs - 0.1 + noise, theirs, 0.9).verdict == "behind"
    assert compare(theirs + 0.1 + noise, theirs, 0.9).closed == pytest.approx(0.25)


@pytest.mark.slow
def test_all_four_tasks_run_at_toy_size(tmp_path):
    measure(tmp_path, "diabetes", "cancer", "digits", "language")
    check(tmp_path, "diabetes", "cancer", "digits", "language")
