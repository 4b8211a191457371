"""The section of docs/benchmarks.md on the models that people bring: error, speed, and each miss in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Row = Mapping[str, Any]

LARGEST_ERROR = 1e-4
MOST_LINES = 12


def models_section(results: Row) -> str:
    """One line a model, and in words what was missed."""
    described, rows = results["environment"], results["rows"]
    versions = ", ".join(f"{name} {number}" for name, number in described["versions"].items())
    lines = [
        "## Models that people bring\n",
        "Built from configuration, small, with random weights; saved, loaded and measured through an adapter as a user "
        "writes it (`benchmarks/zoo`). *Error* is the relative error of inner products of whole gradients against "
        "autograd of the user's own loss in float32, one example at a time; wanted is at most 1e-4, with an adapter of "
        f"at most {MOST_LINES} lines. *Against a loop* is how many times as fast as that loop examples are measured, "
        "from collating to projected rows of 256 numbers a layer, in turns on one thread, by processor time. Wanted "
        "is 1.4 where matrix products take half of the loop's time or more, and 2 elsewhere: the limit of the first is "
        "about 1.5, since what is saved is the product of each weight's gradient. *Fall back* are layers without a "
        "rule, which autograd measures with a pass of their own.\n",
        f"Measured on {described['measured_at'][:10]} with {versions}; load before the start: "
        f"{described['load_before']}.\n",
        "| model | adapter | error | examples/s | products | against a loop | wanted | | fall back |",
        "|---|---:|---:|---:|---:|---:|---:|---|---:|",
    ]
    for row in rows:
        lines.append(_line(row))
    return "\n".join([*lines, "", *_missed(rows)])


def _line(row: Row) -> str:
    name, length = row["model"], f"{row['adapter_lines']} lines"
    if "failed" in row:
        return f"| {name} | {length} | — | — | — | — | — | **failed** | — |"
    verdict = "yes" if holds(row) else "**missed**"
    figures = f"{row['relative_error']:.0e} | {row['examples_per_second']:,.0f} | {row['share_of_products']:.0%}"
    ratios = f"{row['ratio_to_autograd_loop']:.2f} | {row['wanted_ratio']:g}"
    return f"| {name} | {length} | {figures} | {ratios} | {verdict} | {row['fallback_groups']} of {row['groups']} |"


def holds(row: Row) -> bool:
    """Whether a row meets all that is wanted."""
    return bool(
        "failed" not in row
        and row["relative_error"] <= LARGEST_ERROR
        and row["adapter_lines"] <= MOST_LINES
        and row["ratio_to_autograd_loop"] >= row["wanted_ratio"]
    )


def _missed(rows: list[Row]) -> list[str]:
    """What is missed and, where layers fall back, which."""
    told = []
    for row in rows:
        if "failed" in row:
            told.append(f"- **{row['model']}** failed: {row['failed']}")
        elif not holds(row):
            names = row["fallback_names"]
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            fell = f"; {', '.join(f'`{name}`' for name in names[:3])}{more} fall back" if names else ""
            alone = ", one example at a time" if row["one_at_a_time"] else ""
            told.append(
                f"- **{row['model']}**: {row['ratio_to_autograd_loop']:.2f} of {row['wanted_ratio']:g}, in turns "
                f"{', '.join(f'{ratio:.2f}' for ratio in row['ratios'])}{fell}{alone}."
            )
    return ["Missed:\n", *told, ""] if told else ["Every model meets all of it.\n"]
