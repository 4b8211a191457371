"""Exact scores of 32 outputs over whole indexes, against the two things nobody can leave out: reading and multiplying.

One pass gives every score, the top examples of both sides, and the sums by attribute value. Its time is compared with
a bare LanceDB scan of the vector column plus a bare float32 product of those vectors with the queries, after torch has
widened them. Peak memory is that of a process of its own, for the whole index, a quarter of its rows and four times as
many; with huge pages, as `gradtrail serve` and workers run flows, and without.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from machine import RESULTS, conditions, environment, start_again_under_conditions, write_results

from gradtrail.attribution.features.rows import StoredGradients
from gradtrail.attribution.methods.prepared import PreparedQueries
from gradtrail.attribution.numerics.products import faster_products
from gradtrail.attribution.scoring.passes import ScoreResult, score
from gradtrail.storage.gradients.store import GradientStore, IndexTable
from gradtrail.storage.process_memory import HUGE_PAGES

SIZES = ((200_000, 1024), (50_000, 4096))
DTYPES = ("float32", "float16", "int8")
QUERIES, TOP, GROUP = 32, 10, 256
BATCH = 4096


def build(store: GradientStore, rows: int, dimension: int, dtype: str) -> IndexTable:
    """A sealed index of random vectors, with two attributes: 50 sources, 5 licences."""
    groups = [GROUP] * (dimension // GROUP)
    table = store.open_index(
        _index_id(rows, dimension, dtype),
        dimension=dimension,
        group_count=len(groups),
        attribute_names=["licence", "source"],
        config={"benchmark": "score"},
        dtype=dtype,
        group_dimensions=groups,
    )
    generator = np.random.default_rng(0)
    digests: dict[str, str] = {}
    for start in range(0, rows, 2 * BATCH):
        numbers = range(start, min(start + 2 * BATCH, rows))
        ids = [f"example-{number:07d}" for number in numbers]
        contents = [f"{number:064x}" for number in numbers]
        vectors = generator.standard_normal((len(ids), dimension), dtype=np.float32)
        table.append(
            example_ids=ids,
            content_sha256=contents,
            vectors=vectors,
            losses=np.ones(len(ids)),
            squared_norms=np.square(vectors).reshape(len(ids), len(groups), GROUP).sum(2).astype(np.float64),
            attributes={
                "licence": [f"licence-{number % 5}" for number in numbers],
                "source": [f"source-{number % 50}" for number in numbers],
            },
        )
        digests.update(zip(ids, contents, strict=True))
    table.seal(digests)
    return table


def queries(dimension: int) -> PreparedQueries:
    generator = torch.Generator().manual_seed(1)
    return PreparedQueries(torch.randn(QUERIES, dimension, generator=generator), "none")


def one_pass(table: IndexTable, prepared: PreparedQueries) -> ScoreResult:
    """What is timed of ours: top examples of both sides and sums by attribute over every row."""
    return score(prepared, lambda: _rows(table), top_k=TOP)


def _rows(table: IndexTable) -> Iterator[StoredGradients]:
    return map(StoredGradients, table.stream(batch_size=table.rows_at_once(QUERIES)))


def bare_scan(table: IndexTable) -> None:
    """Read the column in batches as large as ours, and do nothing with it."""
    opened = table._connection.open_table(table._table.name)
    for _ in opened.search().select(["vector"]).limit(None).to_batches(batch_size=table.rows_at_once(QUERIES)):
        pass


def held_batches(table: IndexTable) -> list[torch.Tensor]:
    """The whole column in memory, in the type it is stored in."""
    opened = table._connection.open_table(table._table.name)
    scanned = opened.search().select(["vector"]).limit(None).to_batches(batch_size=table.rows_at_once(QUERIES))
    columns = (batch.column("vector") for batch in scanned)
    return [torch.from_numpy(column.flatten().to_numpy().reshape(len(column), -1).copy()) for column in columns]


def bare_product(batches: list[torch.Tensor], prepared: PreparedQueries, *, faster: bool = False) -> None:
    """Widen and multiply what is in memory already, as torch does by itself, or by the library that scoring uses."""
    with faster_products() if faster else nullcontext():
        for batch in batches:
            prepared.vectors @ batch.to(torch.float32).T


def measure(
    store: GradientStore, rows: int, dimension: int, dtype: str, *, repetitions: int, threads: int
) -> dict[str, Any]:
    """The row of one index."""
    sizes = (rows // 4, rows, 4 * rows)
    for count in sizes:
        build(store, count, dimension, dtype)
    table = store.existing(_index_id(rows, dimension, dtype))
    assert table is not None
    prepared, held = queries(dimension), held_batches(table)
    timed: dict[str, Callable[[], object]] = {
        "scan": lambda: bare_scan(table),
        "product": lambda: bare_product(held, prepared),
        "faster product": lambda: bare_product(held, prepared, faster=True),
        "pass": lambda: one_pass(table, prepared),
    }
    seconds: dict[str, list[float]] = {name: [] for name in timed}
    for turn in range(repetitions + 1):
        for name, run in timed.items():
            begin = time.perf_counter()
            run()
            if turn:
                seconds[name].append(time.perf_counter() - begin)
    scan, product, faster, whole = (median(seconds[name]) for name in timed)
    peaks, plain = (
        _peaks(works, store.uri, sizes, dimension, dtype, threads, beside)
        for works, beside in ((("pass",), HUGE_PAGES), (("scan", "pass"), {}))
    )
    return {
        "model": f"{rows:,} × {dimension:,}",
        "engine": f"gradtrail, {dtype}",
        "rows": rows,
        "dimension": dimension,
        "dtype": dtype,
        "queries": QUERIES,
        "examples_per_second": round(rows / whole),
        "ratio_to_ceiling": round((scan + product) / whole, 3),
        "time_over_scan_and_product": round(whole / (scan + product), 3),
        "time_over_scan_and_faster_product": round(whole / (scan + faster), 3),
        "seconds": round(whole, 4),
        "seconds_of_bare_scan": round(scan, 4),
        "seconds_of_bare_product": round(product, 4),
        "seconds_of_bare_product_by_the_faster_library": round(faster, 4),
        "all_seconds": {name: [round(value, 4) for value in values] for name, values in seconds.items()},
        "peak_mib": round(peaks[rows]["peak_mib"]),
        "peak_mib_with_a_quarter_of_the_rows": round(peaks[rows // 4]["peak_mib"]),
        "peak_mib_with_four_times_the_rows": round(peaks[4 * rows]["peak_mib"]),
        "peak_mib_without_huge_pages": round(plain[rows]["peak_mib"]),
        "peak_mib_without_huge_pages_with_a_quarter_of_the_rows": round(plain[rows // 4]["peak_mib"]),
        "peak_mib_without_huge_pages_with_four_times_the_rows": round(plain[4 * rows]["peak_mib"]),
        "peak_mib_of_bare_scan_without_huge_pages": round(plain[rows]["scan_mib"]),
        "peak_mib_of_bare_scan_without_huge_pages_with_four_times_the_rows": round(plain[4 * rows]["scan_mib"]),
        "mib_before_the_pass": round(peaks[rows]["before_mib"]),
        "attributes_summed": ["licence", "source"],
        "top": TOP,
    }


def _peaks(
    works: Sequence[str],
    uri: str,
    sizes: Sequence[int],
    dimension: int,
    dtype: str,
    threads: int,
    beside: Mapping[str, str],
) -> dict[int, dict[str, float]]:
    """Peaks of a pass or a bare scan over each number of rows, each in a process of its own.

    They are forked from one that is started as usual, but for what `beside` says, and has done nothing but import.
    """
    asked = json.dumps([[work, uri, rows, dimension, dtype] for rows in sizes for work in works])
    command = [sys.executable, __file__, "--peaks", asked, "--threads", str(threads)]
    # Here the allocator is left alone: what is asked is how much a user's process takes.
    usual = {name: value for name, value in conditions(threads).items() if not name.startswith("MALLOC_")}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={**usual, **beside})  # noqa: S603
    measured: dict[int, dict[str, float]] = {rows: {} for rows in sizes}
    for line in done.stdout.splitlines():
        found = json.loads(line)
        measured[found.pop("rows")] |= found
    return measured


def _print_each_peak(asked: Sequence[tuple[str, str, int, int, str]], threads: int) -> None:
    for each in asked:
        if child := os.fork():
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, each
            continue
        torch.set_num_threads(threads)
        _print_peak(*each)
        sys.stdout.flush()
        os._exit(0)


def _print_peak(work: str, uri: str, rows: int, dimension: int, dtype: str) -> None:
    table = GradientStore(uri).existing(_index_id(rows, dimension, dtype))
    assert table is not None
    prepared = queries(dimension)
    before = _peak_mib()
    if work == "scan":
        bare_scan(table)
        print(json.dumps({"rows": rows, "scan_mib": _peak_mib()}))
        return
    found = one_pass(table, prepared)
    assert found.example_count == rows
    print(json.dumps({"rows": rows, "before_mib": before, "peak_mib": _peak_mib()}))


def _peak_mib() -> float:
    # Not ru_maxrss of getrusage: Linux counts there what the starting process held before this program replaced it.
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def _index_id(rows: int, dimension: int, dtype: str) -> str:
    return hashlib.sha256(f"{rows} {dimension} {dtype}".encode()).hexdigest()


def _shape(text: str) -> tuple[int, int]:
    rows, dimension = map(int, text.split("x"))
    return rows, dimension


def _line(row: dict[str, Any]) -> str:
    bare = f"scan {row['seconds_of_bare_scan']:.3f} + product {row['seconds_of_bare_product']:.3f}"
    quarter, fourfold = row["peak_mib_with_a_quarter_of_the_rows"], row["peak_mib_with_four_times_the_rows"]
    peaks = f"peak {row['peak_mib']} MiB, {quarter} with a quarter of the rows, {fourfold} with four times as many"
    time_taken = f"{row['seconds']:.3f} s = {row['time_over_scan_and_product']:.2f} × ({bare})"
    return f"{row['model']:>16} {row['dtype']:8} {time_taken}; {peaks}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="small indexes, to see that everything runs")
    parser.add_argument("--shapes", nargs="+", type=_shape, default=list(SIZES), help="such as 200000x1024")
    parser.add_argument("--dtypes", nargs="+", default=list(DTYPES))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repetitions", type=int, default=15)
    parser.add_argument("--folder", type=Path, help="where the indexes are built; a temporary folder by default")
    parser.add_argument("--output", type=Path, default=RESULTS / "score.json")
    parser.add_argument("--peaks", help=argparse.SUPPRESS)
    options = parser.parse_args()
    # Scoring only reads Arrow's memory, which is read-only.
    warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
    if options.peaks:
        _print_each_peak(json.loads(options.peaks), options.threads)
        return
    start_again_under_conditions(options.threads)

    described = environment(options.threads, ["torch", "lancedb", "pyarrow", "numpy"], queries=QUERIES, top=TOP)
    sizes = ((2000, 512),) if options.tiny else options.shapes
    rows = []
    for count, dimension in sizes:
        for dtype in options.dtypes:
            # The indexes of one row at a time on disk: the largest take about four gigabytes.
            with tempfile.TemporaryDirectory(dir=options.folder) as folder:
                found = measure(
                    GradientStore(folder),
                    count,
                    dimension,
                    dtype,
                    repetitions=options.repetitions,
                    threads=options.threads,
                )
            rows.append(found)
            print(_line(found), flush=True)
    write_results(options.output, described, rows)


if __name__ == "__main__":
    main()
