from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.ci  # test runs within tests

ROOT = Path(__file__).parents[2]
CLAMP = """

def clamp(value, low, high):
    if value < low:
        return low
    return min(value, high)
"""
UNTESTED = """

def untested(value):
    return value + 1
"""
TESTS = """
import pytest
from lib.maths import clamp


@pytest.fixture(scope="module")
def clamped():
    return clamp(7, 0, 5)


def test_low():
    assert clamp(-1, 0, 5) == 0


def test_high(clamped):
    assert clamped == 5


def test_high_again(clamped):
    assert clamped > 4


@pytest.mark.slow
def test_slow():
    assert clamp(3, 0, 5) == 3
"""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "maths.py").write_text(CLAMP + UNTESTED)
    (tmp_path / "test_maths.py").write_text(TESTS)
    (tmp_path / "pyproject.toml").write_text('[tool.pytest.ini_options]\nmarkers = ["slow", "browser"]\n')
    return tmp_path


def run(script: str) -> dict:
    """What a script prints as JSON, in a process of its own: forks want one without threads, and few modules."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "benchmarks")}
    command = [sys.executable, "-c", "import json\nfrom pathlib import Path\n" + script]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_a_fault_is_noticed_by_tests_that_run_its_statement_or_by_none(tree):
    said = run(
        f"""
import mutants
areas = {{"maths": {{"files": ["lib/maths.py"], "tests": ["test_maths.py"]}}}}
facts, rows = mutants.measure(Path({str(tree)!r}), areas, count=100, seed=1, limits=mutants.Limits(60.0, 60))
print(json.dumps([facts, rows]))
"""
    )
    facts, (row,) = said
    assert facts["tests"] == 3, "the slow test is left out"
    assert facts["tests_that_did_not_pass"] == []
    # Nothing runs the two faults of `untested`, and no test has a value that `<` and `<=` tell apart.
    assert row["without_a_test"] == 2
    assert row["killed"] + row["survived"] == row["mutants"]
    assert row["survived"] == row["without_a_test"] + 1
    assert len(row["identities"]["killed"].split()) == row["killed"] > 0
    assert (tree / "lib" / "maths.py").read_text() == CLAMP + UNTESTED


def test_a_function_that_moves_keeps_its_faults_and_a_seed_draws_others(tree):
    (tree / "lib" / "moved.py").write_text("LIMIT = 3" + UNTESTED + CLAMP)
    script = f"""
from mutant_drawing import drawn
def known(file, seed, count):
    return [mutant.identity for mutant in drawn(Path({str(tree)!r}), {{"maths": [file]}}, count, seed)]
print(json.dumps({{
    "before": known("lib/maths.py", 1, 3), "moved": known("lib/moved.py", 1, 3),
    "other": known("lib/maths.py", 2, 3), "all": known("lib/maths.py", 1, 100),
}}))
"""
    drawn = run(script)
    assert drawn["before"] == drawn["moved"] == drawn["all"][:3]
    assert drawn["before"] != drawn["other"]
    assert len(set(drawn["all"])) == len(drawn["all"]) > 3


def test_a_fault_that_never_ends_is_stopped_and_one_that_cannot_be_imported_is_noticed(tree):
    fates, said = run(
        f"""
from mutant_trials import Trials
trials = Trials(Path({str(tree)!r}), [])
endless = "def clamp(value, low, high):\\n    while True:\\n        pass\\n"
found = [trials.run("lib/maths.py", source, ["test_maths.py::test_low"], 1.0) for source in (endless, "(", None)]
nowhere = trials.run("lib/maths.py", None, ["test_maths.py::test_nowhere"], 1.0)
print(json.dumps([[each.fate for each in found], nowhere.said]))
"""
    )
    assert fates == ["timeout", "killed", "survived"]
    assert "test_nowhere" in said


def test_for_an_older_commit_files_have_the_names_of_then(tree):
    def git(*arguments: str) -> None:
        identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run(["git", "-C", str(tree), *identity, *arguments], check=True, capture_output=True)

    git("init")
    git("add", "lib")
    git("commit", "-m", "first")
    git("tag", "first")
    git("mv", "lib/maths.py", "lib/clamping.py")
    git("add", ".")
    git("commit", "-m", "second")
    areas = {"maths": {"files": ["lib/clamping.py"], "tests": ["test_maths.py", "lib"]}}
    found = run(
        f"""
import mutants
mutants.ROOT = Path({str(tree)!r})
print(json.dumps([mutants.named_then(commit, {areas!r}) for commit in ("first", "HEAD")]))
"""
    )
    assert found == [{"maths": {"files": ["lib/maths.py"], "tests": ["lib"]}}, areas]


def test_the_page_holds_a_later_run_against_the_first_on_the_faults_of_both(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from document_mutants import mutants_section

    def measured(commit: str, killed: str, survived: str) -> dict:
        fates = {"killed": killed, "survived": survived}
        counts = {"mutants": len(f"{killed} {survived}".split()), "killed": len(killed.split()), "without_a_test": 1}
        return {"environment": {"commit": commit}, "rows": [{"area": "chain", **counts, "identities": fates}]}

    before = measured("aaaaaaa", "a b", "c d")
    said = mutants_section({"runs": [before, measured("bbbbbbb", "a b c e", "")]})
    assert "| aaaaaaa | chain | 4 | 2 | 50.0% | 1 |" in said
    assert "Of the 3 faults drawn at aaaaaaa and at bbbbbbb alike, the former notices 2 and the latter 3" in said
    assert "**missed**" not in said
    assert "**missed**" in mutants_section({"runs": [before, measured("bbbbbbb", "a", "b c")]})
