"""How many small faults the quick tests of scoring, projection, the hash chain and the index table notice.

mutmut proposes the faults, a seed draws some (see `mutant_drawing`), and each is tried in a fork by the tests that run
the changed statement, fastest first, until one fails. A fault that ends the time is noticed too. Runs of several
commits stand side by side in the results: those of the same faults can be compared.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import tomllib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from machine import RESULTS, ROOT, environment
from mutant_drawing import Mutant, drawn
from mutant_trials import Trial, Trials

Row = dict[str, Any]

PACKAGES = ("mutmut", "coverage", "pytest", "hypothesis", "torch", "duckdb", "lancedb")
_TIMES, _PLUS_SECONDS, _UNCHANGED_SECONDS = 4.0, 15.0, 3600.0


@dataclass(frozen=True)
class Limits:
    """Which tests are too dear to try: longer ones, and more of them for one mutant."""

    longest_test_seconds: float
    most_tests: int


def unpack(commit: str, tree: Path) -> str:
    """A copy of a commit's files; returns its name in twelve letters."""
    with tarfile.open(fileobj=io.BytesIO(_git("archive", commit))) as archive:
        archive.extractall(tree, filter="tar")
    return _git("rev-parse", "--short=12", commit).decode().strip()


def named_then(commit: str, areas: Mapping[str, Row]) -> dict[str, Row]:
    """The areas by a commit's names: what has moved since is named as then, what came since left out."""
    said = _git("diff", "--find-renames=40%", "-l9999", "--diff-filter=AR", "--name-status", "-z", commit, "HEAD")
    words = iter(said.decode().split("\0"))
    then: dict[str, str | None] = {}
    for change in filter(None, words):
        first = next(words)
        then |= {first: None} if change == "A" else {next(words): first}

    def named(paths: Sequence[str]) -> list[str]:
        return list(dict.fromkeys(name for path in paths if (name := then.get(path, path)) is not None))

    return {area: {kind: named(paths) for kind, paths in kinds.items()} for area, kinds in areas.items()}


def _git(*arguments: str) -> bytes:
    command = ["git", "-C", str(ROOT), *arguments]
    return subprocess.run(command, check=True, capture_output=True).stdout  # noqa: S603


def covered(tree: Path, files: Sequence[str], tests: Sequence[str]) -> Row:
    """Which quick tests run which lines of `files`, and what they take (`mutant_coverage`).

    Raises:
        SystemExit: the tests cannot be run.
    """
    output = tree / ".covered.json"
    described = {
        "PYTHONPATH": os.pathsep.join([str(tree), str(ROOT / "benchmarks")]),
        "MUTANTS_COVERAGE": str(output),
        "MUTANTS_FILES": os.pathsep.join(str(tree / file) for file in files),
    }
    quick = ["-q", "-p", "mutant_coverage", "-p", "no:cacheprovider", "-m", "not slow and not browser"]
    command = [sys.executable, "-m", "pytest", *quick, *tests]
    ran = subprocess.run(command, cwd=tree, env=os.environ | described, check=False, stdout=sys.stderr)  # noqa: S603
    if not output.exists():
        raise SystemExit(f"The tests of {tree} cannot be run (code {ran.returncode}).")
    found: Row = json.loads(output.read_text())
    return found


def tests_of(mutant: Mutant, tree: Path, allowed: Sequence[str], found: Row, limits: Limits) -> list[str]:
    """The tests that run the changed statement, the fastest of each file in turn; a head counts as its body."""
    by_line = found["tests"].get(str((tree / mutant.path).resolve()), {})
    tests = {test for line in mutant.lines for test in by_line.get(str(line), ())}
    seconds: Mapping[str, float] = found["seconds"]
    chosen = [
        test for test in tests if test.startswith(tuple(allowed)) and seconds[test] <= limits.longest_test_seconds
    ]
    in_file: Counter[str] = Counter()
    ranked = []
    for test in sorted(chosen, key=lambda test: (seconds[test], test)):
        file = test.partition("::")[0]
        ranked.append((in_file[file], seconds[test], test))
        in_file[file] += 1
    return [test for _, _, test in sorted(ranked)[: limits.most_tests]]


def try_all(
    mutants: Sequence[Mutant], tests: Sequence[Sequence[str]], seconds: Mapping[str, float], trials: Trials
) -> list[Trial]:
    """One trial each. Tests that have killed before come first, so that a fault is found early."""
    kills: Counter[str] = Counter()
    done = []
    for number, (mutant, chosen) in enumerate(zip(mutants, tests, strict=True), 1):
        ordered = sorted(chosen, key=lambda test: -kills[test])
        limit = _TIMES * sum(seconds[test] for test in chosen) + _PLUS_SECONDS
        trial = trials.run(mutant.path, mutant.source, ordered, limit) if chosen else Trial("survived", "", 0.0)
        kills[trial.by] += 1
        done.append(trial)
        print(
            f"{number}/{len(mutants)} {trial.fate} {trial.seconds:.1f} s of {len(chosen)} tests: {mutant.path} "
            f"{mutant.function} line {mutant.lines.start}: {mutant.before} -> {mutant.after} | {trial.by}",
            file=sys.stderr,
            flush=True,
        )
    return done


def rows_of(mutants: Sequence[Mutant], tests: Sequence[Sequence[str]], trials: Sequence[Trial]) -> list[Row]:
    """One row an area; identities of mutants by fate, so that another commit's can be held against them."""
    rows = []
    for area in dict.fromkeys(mutant.area for mutant in mutants):
        those = [each for each in zip(mutants, tests, trials, strict=True) if each[0].area == area]
        fates = Counter(trial.fate for _, _, trial in those)
        rows.append(
            {
                "area": area,
                "mutants": len(those),
                "killed": fates["killed"] + fates["timeout"],
                "by_timeout": fates["timeout"],
                "survived": fates["survived"],
                "without_a_test": sum(not chosen for _, chosen, _ in those),
                "killed_share": round((fates["killed"] + fates["timeout"]) / len(those), 4),
                "identities": {
                    fate: " ".join(
                        sorted(mutant.identity for mutant, _, trial in those if (trial.fate != "survived") == noticed)
                    )
                    for fate, noticed in (("killed", True), ("survived", False))
                },
            }
        )
    return rows


def measure(tree: Path, areas: Mapping[str, Row], *, count: int, seed: int, limits: Limits) -> tuple[Row, list[Row]]:
    """Draw faults in the files of the areas and try each. Facts about the whole, and one row an area.

    Raises:
        SystemExit: a file is not there, or tests fail though nothing was changed.
    """
    files = {name: area["files"] for name, area in areas.items()}
    every_file = [file for names in files.values() for file in names]
    mutants = drawn(tree, files, count, seed)
    found = covered(tree, every_file, sorted({test for area in areas.values() for test in area["tests"]}))
    tests = [tests_of(mutant, tree, areas[mutant.area]["tests"], found, limits) for mutant in mutants]
    every_test = sorted({test for chosen in tests for test in chosen})
    trials = Trials(tree, found["libraries"])
    unchanged = trials.run(every_file[0], None, every_test, _UNCHANGED_SECONDS)
    if unchanged.fate != "survived":
        raise SystemExit(f"{unchanged.said}\n{unchanged.by or 'A test'} fails in a fork though nothing was changed.")
    done = try_all(mutants, tests, found["seconds"], trials)
    facts = {
        "seed": seed,
        "tests": len(every_test),
        "tests_that_did_not_pass": found["not_passed"],
        "cpu_seconds": round(sum(trial.seconds for trial in done)),
    }
    return facts, rows_of(mutants, tests, done)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--commit", default="HEAD", help="what to measure (default: HEAD)")
    parser.add_argument("--config", type=Path, default=ROOT / "benchmarks" / "mutants.toml")
    parser.add_argument("--mutants", type=int, help="how many, in place of the configuration's number")
    parser.add_argument("--output", type=Path, default=RESULTS / "mutants.json")
    options = parser.parse_args()
    config = tomllib.loads(options.config.read_text())
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    os.chdir(ROOT)  # mutmut reads its settings from the pyproject.toml here
    described = environment(1, PACKAGES)
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        tree = Path(folder).resolve() / "tree"
        tree.mkdir()
        described["commit"] = unpack(options.commit, tree)
        facts, rows = measure(
            tree,
            named_then(options.commit, config["areas"]),
            count=options.mutants or config["mutants"],
            seed=config["seed"],
            limits=Limits(config["longest_test_seconds"], config["most_tests"]),
        )
    run = {"environment": described | facts, "rows": rows}
    earlier = json.loads(options.output.read_text())["runs"] if options.output.exists() else []
    kept = [each for each in earlier if each["environment"]["commit"] != described["commit"]]
    options.output.write_text(json.dumps({"runs": [*kept, run]}, indent=2) + "\n")
    print(f"Written: {options.output}")


if __name__ == "__main__":
    main()
