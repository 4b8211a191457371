from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def run(*arguments: str) -> None:
    command = [sys.executable, str(BENCHMARKS / arguments[0]), *arguments[1:]]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr


def test_the_ledger_is_measured_as_it_grows_and_the_page_says_what_was_found(tmp_path):
    results, page = tmp_path / "lineage.json", tmp_path / "ledger.md"
    run("lineage.py", "--tiny", "--repetitions", "1", "--output", str(results))
    content = json.loads(results.read_text())
    assert [row["attributions"] for row in content["rows"]] == [10_000, 30_000]
    assert content["rows"][1]["bytes"] > content["rows"][0]["bytes"] > 0
    assert all(row["explain_ms"] > 0 and row["blast_radius_outputs"] == row["outputs"] for row in content["rows"])
    content["rows"][-1] |= {"explain_ms": 51.0, "upstream_ms": 199.0}
    results.write_text(json.dumps(content))
    page.write_text((BENCHMARKS.parent / "docs" / "ledger.md").read_text("utf-8"))
    for _ in range(2):
        run("document_lineage.py", "--results", str(results), "--page", str(page))
    text = page.read_text("utf-8")
    assert text.count("| explain one output | 50 ms | 51 ms |") == 1
    assert "| explain one output | 50 ms | 51 ms |" in text
    assert text.count("**missed**") >= 1
    assert "| everything upstream of an output | 200 ms | 199 ms |" in text
    assert "## Five questions" in text
