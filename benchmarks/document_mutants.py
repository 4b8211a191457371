"""The section of docs/benchmarks.md on small faults that the quick tests notice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Run = Mapping[str, Any]


def mutants_section(results: Run) -> str:
    """Every commit that was measured, by area, and each later one against the first on the faults that both had."""
    runs: Sequence[Run] = results["runs"]
    lines = [
        "## Small faults that the quick tests notice\n",
        "[mutmut](https://mutmut.readthedocs.io) proposes small faults: another operator, number or argument, a value "
        "that becomes None. A seed draws some; each is tried by those quick tests of the same room that run the "
        "changed statement, sixty at most. Flow tests and what takes two seconds are left out, so the whole of "
        "`make test` notices more. A fault is known by its function and text, not by its file, so it stays the same "
        "where code moves.\n",
        "| commit | area | faults | noticed | share | run by no such test |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for run in runs:
        commit = run["environment"]["commit"][:7]
        for row in [*run["rows"], _together(run["rows"])]:
            numbers = f"{row['mutants']} | {row['killed']} | {row['killed'] / row['mutants']:.1%}"
            lines.append(f"| {commit} | {row['area']} | {numbers} | {row['without_a_test']} |")
    lines.append("")
    first = runs[0]
    for run in runs[1:]:
        before, after, both = _noticed_by_both(first, run)
        earlier, later = (each["environment"]["commit"][:7] for each in (first, run))
        lines.append(
            f"Of the {both} faults drawn at {earlier} and at {later} alike, the former notices {before} and the latter "
            f"{after} (not fewer: {'yes' if after >= before else '**missed**'}).\n"
        )
    return "\n".join(lines)


def _together(rows: Sequence[Run]) -> Run:
    numbers = {name: sum(row[name] for row in rows) for name in ("mutants", "killed", "without_a_test")}
    return {"area": "together", **numbers}


def _noticed_by_both(first: Run, second: Run) -> tuple[int, int, int]:
    killed, drawn = zip(*(_identities(run) for run in (first, second)), strict=True)
    both = drawn[0] & drawn[1]
    return len(killed[0] & both), len(killed[1] & both), len(both)


def _identities(run: Run) -> tuple[set[str], set[str]]:
    killed = {name for row in run["rows"] for name in row["identities"]["killed"].split()}
    return killed, killed | {name for row in run["rows"] for name in row["identities"]["survived"].split()}
