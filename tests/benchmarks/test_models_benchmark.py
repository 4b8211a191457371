"""The bench of models that people bring, on two that need no other library."""

import json
from pathlib import Path

import pytest

pytestmark = pytest.mark.ci  # a process of its own

WANTED = {
    "model",
    "adapter_lines",
    "relative_error",
    "examples_per_second",
    "ratio_to_autograd_loop",
    "fallback_groups",
}


@pytest.fixture(scope="module")
def content(tmp_path_factory, run_scripts):
    path = tmp_path_factory.mktemp("models") / "models.json"
    options = ["--families", "plain", "--models", "LSTM", "table", "--repetitions", "1", "--examples", "16"]
    run_scripts(["models.py", *options, "--output", str(path)])
    return json.loads(path.read_text())


def test_every_model_has_its_error_its_speed_and_what_fell_back(content):
    assert content["environment"]["threads"] == 1
    assert [row["model"] for row in content["rows"]] == ["LSTM", "table with embeddings"]
    for row in content["rows"]:
        assert row.keys() >= WANTED
        assert row["relative_error"] <= 1e-4
        assert row["adapter_lines"] <= 12
        assert row["ratio_to_autograd_loop"] > 0
        assert len(row["fallback_names"]) == row["fallback_groups"]


def test_the_page_says_what_was_missed_and_what_failed(content, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    from document_models import models_section

    first, second = content["rows"]
    slow = {**first, "ratio_to_autograd_loop": 0.5, "fallback_names": ["recurrent.weight_hh_l0"]}
    failed = {"model": "other", "adapter_lines": 5, "failed": "ValueError: no"}
    page = models_section({**content, "rows": [slow, {**second, "ratio_to_autograd_loop": 9.0}, failed]})
    assert page.count("**missed**") == 1
    assert "- **LSTM**: 0.50 of 2, in turns" in page
    assert "`recurrent.weight_hh_l0` fall back" in page
    assert "- **other** failed: ValueError: no" in page
