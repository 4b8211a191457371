"""Help and explain start fast: they load nothing of what trains, audits or serves."""

from __future__ import annotations

import subprocess
import sys

import pytest

from gradtrail.lineage.ledger.writing import Ledger

HEAVY = {
    *("torch", "mlflow", "prefect", "lancedb", "sklearn", "pandas", "sqlalchemy", "fastapi", "uvicorn", "httpx"),
    *("numpy", "pyarrow", "PIL", "jinja2", "cryptography"),
}
COMMAND = """
import sys
from gradtrail.cli import main
try:
    main()
finally:
    print(*sys.modules, file=sys.stderr)
"""


def _loaded(*arguments: str) -> tuple[str, set[str]]:
    """What a command printed, and the names of all modules in its process at its end."""
    done = subprocess.run(
        [sys.executable, "-c", COMMAND, *arguments], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, set(done.stderr.split())


@pytest.mark.parametrize("arguments", [["--help"], ["explain", "--help"], ["--version"]])
def test_help_loads_no_library_that_does_the_work_and_no_settings(arguments: list[str]) -> None:
    printed, loaded = _loaded(*arguments)
    assert "gradtrail" in printed
    assert not (HEAVY | {"duckdb", "gradtrail.settings"}) & loaded


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_explain_loads_the_ledger_and_nothing_else(story_ledger: Ledger, form: list[str]) -> None:
    printed, loaded = _loaded("explain", "inbox:0", "--home", str(story_ledger.paths.snapshot.parent), *form)
    assert "train-00" in printed
    assert "duckdb" in loaded
    assert not HEAVY & loaded
