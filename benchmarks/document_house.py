"""The section of docs/benchmarks.md on the code itself: sizes of rooms and files, and what was timed by hand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def house_section(results: Mapping[str, Any]) -> str:
    """A table of rooms before and now, and one of what was measured by hand, each with how."""
    lines = [
        "## The code itself\n",
        f"Modules in the fullest folder of each room, and the median lines of a module, at {results['before']} and now "
        "(`python benchmarks/house.py`).\n",
        "| room | modules | in the fullest folder | median lines |",
        "|---|---|---|---|",
    ]
    for old, new in zip(results["rooms_before"], results["rooms_now"], strict=True):
        fullest = f"{old['modules_there']} → {new['modules_there']} (`{new['fullest_folder']}`)"
        sizes = f"{old['modules']} → {new['modules']}"
        lines.append(f"| {old['room']} | {sizes} | {fullest} | {old['median_lines']:g} → {new['median_lines']:g} |")
    lines += [
        "",
        "| measured | before | now | wanted | | how |",
        "|---|---|---|---|---|---|",
    ]
    for row in results["measured"]:
        verdict = "yes" if row["met"] else "**missed**"
        lines.append(f"| {row['what']} | {row['before']} | {row['now']} | {row['wanted']} | {verdict} | {row['how']} |")
    return "\n".join([*lines, ""])
