"""Models that people bring, from configuration: right against autograd, and how fast beside a loop of it.

Each model is built, trained (its weights get some noise), saved and loaded as a user's would be, and measured through
an adapter. The yardstick is a loop of autograd over the same examples, one at a time, with the loss that the user
trains with. Both take turns, on one thread, and the median of the turns' ratios counts.
"""

from __future__ import annotations

import argparse
import importlib
import os
from pathlib import Path
from typing import Any

from machine import RESULTS, environment, start_again_under_conditions, write_results
from model_libraries import LIBRARIES, add_libraries
from zoo.base import Case

FAMILIES = ("texts", "images", "plain")


def cases(families: list[str], names: list[str]) -> list[Case]:
    """The models of some families, of which those whose name holds one of `names`."""
    found = [case for family in families for case in importlib.import_module(f"zoo.{family}").CASES]
    return [case for case in found if not names or any(name in case.name for name in names)]


def summary(row: dict[str, Any]) -> str:
    """A row in one line."""
    if "failed" in row:
        return f"{row['model']:32} failed: {row['failed']}"
    return (
        f"{row['model']:32} {row['adapter_lines']:>2} lines  error {row['relative_error']:.1e}  "
        f"{row['examples_per_second']:>8.1f}/s  {row['ratio_to_autograd_loop']:.2f} of {row['wanted_ratio']}  "
        f"{row['fallback_groups']} of {row['groups']} groups fall back"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--families", nargs="+", default=list(FAMILIES), choices=FAMILIES)
    parser.add_argument("--models", nargs="+", default=[], help="parts of names; all without")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--examples", type=int, help="so many of each model's examples, to see that everything runs")
    parser.add_argument("--output", type=Path, default=RESULTS / "models.json")
    options = parser.parse_args()
    start_again_under_conditions(1)
    os.environ["HF_HUB_OFFLINE"] = "1"
    libraries = []
    if set(options.families) != {"plain"}:
        add_libraries()
        libraries = ["transformers", *LIBRARIES]

    from zoo.measuring import measured_row

    described = environment(1, ["torch", *libraries])
    rows = []
    for case in cases(options.families, options.models):
        rows.append(measured_row(case, repetitions=options.repetitions, count=options.examples))
        print(summary(rows[-1]), flush=True)
        write_results(options.output, described, rows)


if __name__ == "__main__":
    main()
