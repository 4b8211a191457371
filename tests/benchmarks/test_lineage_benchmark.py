from __future__ import annotations

import json
from pathlib import Path

import pytest

pytestmark = pytest.mark.ci  # a ledger that grows

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_the_ledger_is_measured_as_it_grows_and_the_page_says_what_was_found(tmp_path, run_scripts):
    results, page = tmp_path / "lineage.json", tmp_path / "ledger.md"
    run_scripts(["lineage.py", "--tiny", "--repetitions", "1", "--output", str(results)])
    content = json.loads(results.read_text())
    assert [row["attributions"] for row in content["rows"]] == [10_000, 30_000]
    assert content["rows"][1]["bytes"] > content["rows"][0]["bytes"] > 0
    assert all(row["explain_ms"] > 0 and row["blast_radius_outputs"] == row["outputs"] for row in content["rows"])
    content["rows"][-1] |= {"explain_ms": 51.0, "upstream_ms": 199.0}
    results.write_text(json.dumps(content))
    page.write_text((BENCHMARKS.parent / "docs" / "ledger.md").read_text("utf-8"))
    run_scripts(*[["document_lineage.py", "--results", str(results), "--page", str(page)]] * 2)
    text = page.read_text("utf-8")
    assert text.count("| explain one output | 50 ms | 51 ms |") == 1
    assert "| explain one output | 50 ms | 51 ms |" in text
    assert text.count("**missed**") >= 1
    assert "| everything upstream of an output | 200 ms | 199 ms |" in text
    assert "## Five questions" in text
