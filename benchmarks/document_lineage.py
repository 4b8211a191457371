"""Write what the ledger costs at size into docs/ledger.md, from the results and nothing else."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from machine import RESULTS, ROOT

BEGIN, END = "<!-- bench-lineage: written by make bench-lineage -->\n", "<!-- end of bench-lineage -->\n"
NAMED = {
    "explain": "explain one output",
    "upstream": "everything upstream of an output",
    "blast_radius": "blast radius of a source",
}


def section(results: Mapping[str, Any]) -> str:
    """The text between the two marks."""
    described, rows = results["environment"], results["rows"]
    largest = rows[-1]
    return "\n".join(
        [
            f"Measured on {described['measured_at'][:10]} by `make bench-lineage`: {described['cpu']}, "
            f"{described['cores']} cores, {described['memory_gib']} GiB, DuckDB {described['versions']['duckdb']}. "
            f"Load meanwhile: {rows[0]['load']} to {largest['load']}; CPU time tells what the work itself "
            f"takes. {largest['examples']:,} examples in one dataset version, one audit of ten outputs for each "
            f"model version, every row written by the ledger's own writers with salt, digest and commitment.\n",
            _growth(rows),
            _wanted(largest, described["wanted_ms"]),
        ]
    )


def _growth(rows: Sequence[Mapping[str, Any]]) -> str:
    lines = [
        "| attributions | outputs | model versions | written, rows/s (of CPU) | file | snapshot published | "
        + " | ".join(f"{name}, ms (CPU)" for name in NAMED.values())
        + " |",
        "|---:|---:|---:|---:|---:|---:|" + "---:|" * len(NAMED),
    ]
    for row in rows:
        asked = " | ".join(f"{row[f'{name}_ms']:,.0f} ({row[f'{name}_cpu_ms']:,.0f})" for name in NAMED)
        written = f"{row['attributions_per_second']:,} ({row['attributions_per_cpu_second']:,})"
        lines.append(
            f"| {row['attributions']:,} | {row['outputs']:,} | {row['model_versions']:,} | {written} | "
            f"{row['bytes'] / 1e9:.2f} GB | {row['publish_seconds']:.1f} s | {asked} |"
        )
    return "\n".join(lines) + "\n"


def _wanted(row: Mapping[str, Any], wanted: Mapping[str, float]) -> str:
    lines = [
        f"Wanted at 10,000,000 attributions; found at {row['attributions']:,}:\n",
        "| question | at most | median | fastest | CPU | |",
        "|---|---:|---:|---:|---:|---|",
    ]
    for name, limit in wanted.items():
        median, fastest, processor = (row[f"{name}{kind}_ms"] for kind in ("", "_fastest", "_cpu"))
        verdict = "yes" if median <= limit else "**missed**"
        figures = f"{median:,.0f} ms | {fastest:,.0f} ms | {processor:,.0f} ms"
        lines.append(f"| {NAMED[name]} | {limit:,.0f} ms | {figures} | {verdict} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=RESULTS / "lineage.json")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "ledger.md")
    options = parser.parse_args()
    before, _, rest = options.page.read_text("utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    text = section(json.loads(options.results.read_text("utf-8")))
    options.page.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}", "utf-8")
    print(f"Written: {options.page}")


if __name__ == "__main__":
    main()
