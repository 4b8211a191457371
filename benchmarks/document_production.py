"""The parts of docs/benchmarks.md about whole audits and about faults."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median
from typing import Any

Row = Mapping[str, Any]

FASTER, EMPTY_SHARE, MEMORY_SHARE = 3.0, 0.5, 0.8
"""What is wanted beside an older commit: speed at least, the time of an empty run and peak memory at most."""
FLAT = 1.03
"""Memory that grows by less than this is called flat."""


def audits_section(results: Row) -> str:
    """What whole audits cost, how that grows, and what a run costs that finds nothing new."""
    described = results["environment"]
    empty, wanted = described["seconds_of_an_empty_run"], described["wanted_seconds_of_an_empty_run"]
    lines = [
        "## Whole audits: from the inbox to the linked report\n",
        "`gradtrail audit` of a model of two layers, with a Prefect server that runs and MLflow on sqlite: the files "
        "are read, every output is measured and scored against every training example, recorded, reported in three "
        "files and linked. Each row is a process of its own, with its libraries in the peak memory.\n",
        _load(described),
        "| training examples | outputs | outputs/s | seconds | peak memory | largest report |",
        "|---:|---:|---:|---:|---:|---:|",
    ]
    for row in results["rows"]:
        lines.append(
            f"| {row['training_examples']:,} | {row['outputs']:,} | {row['outputs_per_second']:.1f} "
            f"| {row['seconds']:.1f} | {row['peak_memory_mb']:,} MB | {row['largest_report_mb']:.1f} MB |"
        )
    worst = max(empty.values())
    verdict = "yes" if worst <= wanted else "**missed**"
    said = ", ".join(f"{seconds:.2f} s with {int(number):,} training examples" for number, seconds in empty.items())
    lines.append(_growth(results["rows"]))
    lines.append(f"\nA run that finds nothing new takes {said}. Wanted: at most {wanted:.0f} s: {verdict}.\n")
    return "\n".join(lines)


def beside_section(results: Row) -> str:
    """What audits cost by an older commit and by the code of the measurement, run in turns on one machine."""
    older, newer = results["rows"]
    described = results["environment"]
    lines = [
        f"### Beside commit {older['code']}\n",
        f"`benchmarks/audit.py --beside {older['code']}`: both run in turns, each time in a process of its own, on one "
        f"Prefect server; {newer['outputs']:,} outputs against {newer['training_examples']:,} training examples. "
        "Every turn is shown, and ratios are of medians.\n",
        _load(described),
        "| code | seconds, turn by turn | outputs/s | an empty run | peak memory, turn by turn |",
        "|---|---|---:|---:|---|",
    ]
    for row, name in ((older, older["code"]), (newer, described["commit"])):
        seconds = ", ".join(f"{each:.1f}" for each in row["seconds"])
        memory = ", ".join(f"{each:,}" for each in row["peak_memory_mb"])
        lines.append(
            f"| {name} | {seconds} | {row['outputs_per_second']:.1f} | {row['seconds_of_an_empty_run']:.2f} s "
            f"| {memory} MB |"
        )
    faster = newer["outputs_per_second"] / older["outputs_per_second"]
    empty = newer["seconds_of_an_empty_run"] / older["seconds_of_an_empty_run"]
    memory = median(newer["peak_memory_mb"]) / median(older["peak_memory_mb"])
    wanted = [
        ("outputs a second", f"{faster:.2f} times as many", "3 times", faster >= FASTER),
        ("an empty run", f"{empty:.2f} of its time", "half", empty <= EMPTY_SHARE),
        ("peak memory", f"{memory:.2f} of it", "0.8", memory <= MEMORY_SHARE),
    ]
    said = "; ".join(f"{name}: {found} (wanted {goal}: {_verdict(met)})" for name, found, goal, met in wanted)
    lines.append(f"\n{said[0].upper()}{said[1:]}.\n")
    return "\n".join(lines)


def _verdict(met: bool) -> str:
    return "yes" if met else "**missed**"


def _growth(rows: list[Row]) -> str:
    """What more training examples cost, at the most outputs that were measured with the fewest and the most of them."""
    by_size = {(row["training_examples"], row["outputs"]): row for row in rows}
    sizes = sorted({examples for examples, _ in by_size})
    both = [outputs for examples, outputs in by_size if examples == sizes[0] and (sizes[-1], outputs) in by_size]
    if len(sizes) < 2 or not both:
        return ""
    few, many = (by_size[size, max(both)] for size in (sizes[0], sizes[-1]))
    slower, larger = many["seconds"] / few["seconds"], many["peak_memory_mb"] - few["peak_memory_mb"]
    return (
        f"\nWith {max(both):,} outputs, {sizes[-1] / sizes[0]:.0f} times as many training examples take {slower:.2f} "
        f"times as long and {larger:,} MB more. The adapter of this measurement keeps its training data in memory, "
        f"about 1 kB an example.{_by_time(rows)}"
    )


def _by_time(rows: list[Row]) -> str:
    """Whether memory stays where it was: the last fifth of the longest runs against their second, peaks apart."""
    most = max((row["outputs"] for row in rows), default=0)
    found = [row["memory_mb_by_fifth_of_each_run"] for row in rows if row["outputs"] == most]
    if not found:
        return ""
    each = [[run[-1] - run[1] for run in runs] for runs in found]
    grown = [median(differences) for differences in each]
    flat = all(more <= (FLAT - 1) * median(run[1] for run in runs) for more, runs in zip(grown, found, strict=True))
    said = "; ".join(
        f"{more:+.0f} ({', '.join(f'{one:+}' for one in differences)})"
        for more, differences in zip(grown, each, strict=True)
    )
    return (
        f" The median of the last fifth of the runs of {most:,} outputs against that of their second fifth, in the "
        f"median of runs, and of each: {said} MB. Wanted: flat, here within {FLAT - 1:.0%}: "
        f"{'yes' if flat else '**missed**'}. An audit covers a thousand outputs at most and more of them make several, "
        "one after the other. Peaks are moments above that, the highest when the ledger packs what was added, which it "
        "does every few thousand outputs."
    )


def faults_section(results: Row) -> str:
    """What was lost or duplicated under each fault."""
    lines = [
        "## Faults: what is lost, what is there twice\n",
        f"{results['environment']['outputs_an_audit']} outputs an audit. SIGKILL strikes a process at a moment drawn "
        "over the duration of a run that nothing disturbs; *interrupted* are the trials in which the fault met the "
        "flow at work. Then the flow runs again, and the ledger is compared with that of the undisturbed run. Problems "
        "are those that `gradtrail verify` finds.\n",
        _load(results["environment"]),
        "| flow | fault | trials | interrupted | lost | duplicated | problems |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for row in results["rows"]:
        numbers = " | ".join(str(row[name]) for name in ("trials", "interrupted", "lost", "duplicated", "problems"))
        lines.append(f"| {row['flow']} | {row['fault']} | {numbers} |")
    return "\n".join([*lines, ""])


def _load(described: Row) -> str:
    return f"Measured on {described['measured_at'][:10]}; load before the start: {described['load_before']}.\n"
