"""Write docs/benchmarks.md and its picture from the results, and nothing else: what is slower is said as plainly."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from document_house import house_section
from document_indexing import indexing_section, picture
from document_models import models_section
from document_mutants import mutants_section
from document_production import FLAT, audits_section, beside_section, faults_section
from machine import RESULTS, ROOT

Row = Mapping[str, Any]

WANTED_RATIO = 1.3
"""A pass of scoring may take this many times a bare scan and a bare product together."""


def markdown(
    index: Row,
    score: Row,
    peers: Row,
    audit: Row | None = None,
    faults: Row | None = None,
    mutants: Row | None = None,
    beside: Row | None = None,
    house: Row | None = None,
    models: Row | None = None,
) -> str:
    """The whole page; whole audits, faults and mutants where they were measured."""
    parts = [
        "# Benchmarks\n",
        "What gradtrail costs and how it compares, measured by the scripts in `benchmarks/` and written by "
        "`make bench-docs` from `benchmarks/results/*.json`. Every row counts, also those where gradtrail is slower.\n",
        _machine(index["environment"]),
        indexing_section(index),
        *([models_section(models)] if models else []),
        _scoring(score),
        _oracles(peers),
        *([audits_section(audit)] if audit else []),
        *([beside_section(beside)] if beside else []),
        *([faults_section(faults)] if faults else []),
        *([mutants_section(mutants)] if mutants else []),
        *([house_section(house)] if house else []),
        _running(),
    ]
    return "\n".join(parts)


def _machine(described: Row) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in described["versions"].items())
    return (
        f"Measured on {described['measured_at'][:10]}: {described['cpu']}, {described['cores']} cores, "
        f"{described['threads']} threads for every engine, {described['memory_gib']} GiB; "
        f"Python {described['python']}, {versions}. No accelerator. "
        f"Load before the start: {described['load_before']}.\n"
    )


def _scoring(results: Row) -> str:
    first = results["rows"][0]
    lines = [
        "## Scoring: exact, over every row\n",
        f"One pass scores {first['queries']} outputs against every row, keeps the top {first['top']} of both sides, "
        f"and sums by {' and '.join(first['attributes_summed'])}. Beside it: a bare LanceDB scan of the vector column, "
        "and the bare float32 product of those vectors, held in memory and widened by torch, with the queries. Wanted: "
        "at most 1.3 times the sum of the two. The product is torch's own, by MKL here, and in brackets the same by "
        "[oneDNN](attribution-reference.md#faster-products), which scoring uses where it is faster.\n",
        "| index | kept as | pass | scan | product | pass / (scan + product) | | peak memory | of a quarter | of 4 × |",
        "|---|---|---:|---:|---:|---:|---|---:|---:|---:|",
    ]
    for row in results["rows"]:
        ratio = row["time_over_scan_and_product"]
        seconds = " | ".join(
            f"{row[name]:.2f} s" for name in ("seconds", "seconds_of_bare_scan", "seconds_of_bare_product")
        )
        sizes = ("", "_with_a_quarter_of_the_rows", "_with_four_times_the_rows")
        memory = " | ".join(f"{row[f'peak_mib{size}']:,} MiB" for size in sizes)
        verdict = "yes" if ratio <= WANTED_RATIO else "**missed**"
        ratios = f"{ratio:.2f} ({row['time_over_scan_and_faster_product']:.2f})"
        lines.append(f"| {row['model']} | {row['dtype']} | {seconds} | {ratios} | {verdict} | {memory} |")
    return "\n".join([*lines, "", _memory(results["rows"])])


def _memory(rows: Sequence[Row]) -> str:
    before = min(row["mib_before_the_pass"] for row in rows)
    quarter, fourfold, plain = "_with_a_quarter_of_the_rows", "_with_four_times_the_rows", "peak_mib_without_huge_pages"
    from_quarter = max(row["peak_mib"] / row[f"peak_mib{quarter}"] for row in rows) - 1
    to_fourfold = max(row[f"peak_mib{fourfold}"] / row["peak_mib"] for row in rows) - 1
    largest = max(rows, key=lambda row: row[plain + fourfold])
    scan = "peak_mib_of_bare_scan_without_huge_pages"
    return (
        f"The files are in the page cache. Peak memory is that of a process of its own, which holds {before:,} MiB of "
        "libraries before the pass, with huge pages, as `gradtrail serve` and workers run flows. Wanted: independent "
        f"of the number of rows. From a quarter of the rows to the whole it grows by at most {from_quarter:.1%} "
        f"({_flat(from_quarter)}), from there to four times the rows by at most {to_fourfold:.1%} "
        f"({_flat(to_fourfold)}). Without huge pages a process keeps more of what it has freed: {largest['model']} as "
        f"{largest['dtype']} takes {largest[plain + quarter]:,}, {largest[plain]:,} and {largest[plain + fourfold]:,} "
        f"MiB with a quarter, once and four times the rows, and a bare LanceDB scan that only reads {largest[scan]:,} "
        f"and {largest[scan + fourfold]:,} with once and four times.\n"
    )


def _flat(growth: float) -> str:
    return f"within {FLAT - 1:.0%}: " + ("yes" if growth <= FLAT - 1 else "**missed**")


def _oracles(results: Row) -> str:
    lines = [
        "## The same scores as peers\n",
        "| method | peer | relative difference | at most | | conditions |",
        "|---|---|---:|---:|---|---|",
    ]
    for row in results["rows"]:
        verdict = "yes" if row["holds"] else "**missed**"
        numbers = f"{row['relative_difference']:.1e} | {row['wanted']:.0e}"
        lines.append(f"| {row['method']} | {row['engine']} | {numbers} | {verdict} | {row['conditions']} |")
    return "\n".join(lines) + "\n"


def _running() -> str:
    return (
        "## Measuring again\n\n"
        "`make bench-index`, `make bench-models`, `make bench-score`, `make bench-peers`, `make bench-audit`, "
        "`make bench-faults` and `make bench-mutants` write the results, `make bench-docs` this page. "
        "The first makes `.venv-peers`, an environment with the peers, because their requirements do not go together "
        "with ours: they would bring a CUDA build of torch; the second makes `.venv-models` with timm and "
        "peft. Leave the machine alone meanwhile.\n\n"
        "All engines run under the same settings: as many threads, and an allocator that keeps its memory, because a "
        "virtual machine pays dearly for every page that is touched for the first time. traker draws its whole "
        "projection again for every batch on a CPU, so it is timed over one batch; kronfluence keeps no index, so one "
        "scoring pass is timed; dattri keeps its gradients in memory, because its cache on disk needs an accelerator.\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--docs", type=Path, default=ROOT / "docs")
    options = parser.parse_args()
    index, score, peers = (
        json.loads((options.results / f"{name}.json").read_text()) for name in ("index", "score", "peers")
    )
    audit, faults, mutants, beside, house, models = (
        json.loads(path.read_text()) if (path := options.results / f"{name}.json").is_file() else None
        for name in ("audit", "faults", "mutants", "audit_beside", "house", "models")
    )
    page = markdown(index, score, peers, audit, faults, mutants, beside, house, models)
    (options.docs / "benchmarks.md").write_text(page)
    picture(index, options.docs / "benchmarks.svg")
    print(f"Written: {options.docs / 'benchmarks.md'} and benchmarks.svg")


if __name__ == "__main__":
    main()
