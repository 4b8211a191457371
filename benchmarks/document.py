"""Write docs/benchmarks.md and its picture from the results, and nothing else: what is slower is said as plainly."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib as mpl
from machine import RESULTS, ROOT

Row = Mapping[str, Any]

NAMES = {"gpt": "GPT", "cnn": "CNN", "mlp": "MLP"}
DESCRIBED = {
    "gpt": "transformer, 4 blocks of width 256, vocabulary 1,024; 64 random tokens an example",
    "cnn": "4 convolutions and 2 linear layers; images of 3 × 32 × 32",
    "mlp": "5 linear layers of width 512; rows of 64 numbers",
}
OURS = "gradtrail"
FAIR = "gradtrail, linear layers only"
HELD = "gradtrail, kept in memory"
CEILING, FASTER_CEILING, TOLD = "ceiling:", "ceiling,", ", torch told"
WORKERS, BY_HAND = " workers", " by hand"
YARDSTICKS = ("ceiling", "training step", OURS)
EQUAL = 0.005
"""Ratios closer to 1 than this are called equal."""
FLAT = 1.03
"""Memory that grows by less than this is called flat."""


def markdown(index: Row, score: Row, peers: Row, audit: Row | None = None, faults: Row | None = None) -> str:
    """The whole page; whole audits and faults where they were measured."""
    parts = [
        "# Benchmarks\n",
        "What gradtrail costs and how it compares, measured by the scripts in `benchmarks/` and written by "
        "`make bench-docs` from `benchmarks/results/*.json`. Every row counts, also those where gradtrail is slower.\n",
        _machine(index["environment"]),
        _indexing(index),
        _scoring(score),
        _oracles(peers),
        *([_audits(audit)] if audit else []),
        *([_faults(faults)] if faults else []),
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


def _indexing(results: Row) -> str:
    parameters = results["environment"]["parameters"]
    parts = [
        "## Indexing: examples per second\n",
        "The *ceiling* is a forward pass and a backward pass to the output of the first layer, with frozen weights: no "
        "engine that reads gradients through hooks can do less. The *training step* is forward, backward and AdamW. "
        f"gradtrail keeps {results['environment']['group_dimension']} numbers a layer, of every layer, and its time "
        "includes collating the examples and writing them to LanceDB. Its *workers* are processes of one thread that "
        "share the examples and the table, as `gradtrail index --workers` starts them; peers have nothing like it, but "
        "can be started several times *by hand*. Peers keep as many numbers a layer, of the layers they cover. Engines "
        "take turns; each turn begins with a pass that is not timed.\n",
        "Peers and both yardsticks multiply as torch does by itself. On this machine that is by MKL, where gradtrail "
        "takes [oneDNN](attribution.md#faster-products), which any engine could: the second ceiling does, and peers "
        "that were *told* run once more with torch's setting for it, which holds for attention, too.\n"
        if results["environment"].get("has_faster_products")
        else "",
        "![Examples per second of every engine](benchmarks.svg)\n",
    ]
    for model, name in NAMES.items():
        rows = [row for row in results["rows"] if row["model"] == model]
        if rows:
            parts.append(f"### {name}\n")
            parts.append(f"{DESCRIBED[model]}; {parameters[model]:,} parameters.\n")
            parts.append(_index_table(rows))
    return "\n".join([*parts, _wanted(results["rows"])])


def _index_table(rows: Sequence[Row]) -> str:
    lines = [
        "| engine | examples/s | of the ceiling | of a training step | gradtrail against it | what it covers |",
        "|---|---:|---:|---:|---|---|",
    ]
    for row in sorted(rows, key=lambda row: -row.get("examples_per_second", 0)):
        name = f"**{row['engine']}**" if row["engine"].startswith(OURS) else row["engine"]
        if "unavailable" in row:
            lines.append(f"| {name} | — | — | — | cannot do it | {row['unavailable']} |")
            continue
        against = "" if row["engine"].startswith(YARDSTICKS) else _against(row["ratio_of_gradtrail_to_it"])
        shares = f"{row['ratio_to_ceiling']:.2f} | {row['ratio_to_training_step']:.2f}"
        numbers = f"{_rate(row['examples_per_second'])} | {shares}"
        lines.append(f"| {name} | {numbers} | {against} | {row['covers']} |")
    return "\n".join(lines) + "\n"


def _against(ratio: float) -> str:
    if abs(ratio - 1) < EQUAL:
        return "equal"
    return f"{ratio:.2f} × as fast" if ratio > 1 else f"**slower: {ratio:.2f} × as fast**"


def _rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def _wanted(rows: Sequence[Row]) -> str:
    """The figures that were set as goals, and what was found."""
    rates = {(row["model"], row["engine"]): row["examples_per_second"] for row in rows if "unavailable" not in row}
    shared = next((engine for _, engine in rates if WORKERS in engine), "")
    goals: list[tuple[str, float, float | None]] = []
    for engine, said in (
        (OURS, "GPT"),
        (FAIR, "GPT, on the layers that peers cover"),
        (shared, _called("GPT", shared)),
    ):
        if ("gpt", engine) in rates:
            goals += _goals_of_gpt(said, rates["gpt", engine], _of_model(rates, "gpt"))
    for model in ("cnn", "mlp"):
        found = _of_model(rates, model)
        rivals = [engine for engine in found if not engine.startswith(YARDSTICKS)]
        for ours, said in ((OURS, NAMES[model]), (shared, _called(NAMES[model], shared))):
            for among in _in_kinds(rivals) if ours in found else ():
                fastest = max(among, key=lambda engine: found[engine])
                goals.append((f"{said}: against the fastest peer, {fastest}", 1.0, found[ours] / found[fastest]))
    held = rates.get(("mlp", HELD))
    if held is not None:
        mlp = {engine: held / rate for (model, engine), rate in rates.items() if model == "mlp"}
        goals.append(("MLP, kept in memory as dattri keeps its own: against dattri LoGra", 1.0, _first(mlp, "dattri")))
    lines = [
        "### What was wanted, and what was found\n",
        "| ratio | wanted at least | found | |",
        "|---|---:|---:|---|",
    ]
    for said, wanted, found in goals:
        if found is not None:
            lines.append(f"| {said} | {wanted:.2f} | {found:.2f} | {'yes' if found >= wanted else '**missed**'} |")
    return "\n".join([*lines, *_out_of_reach(rates), *_price_of_writing(rates)]) + "\n"


def _called(model: str, shared: str) -> str:
    return f"{model}, {shared.removeprefix(OURS).strip(' ,')}"


def _of_model(rates: Mapping[tuple[str, str], float], model: str) -> dict[str, float]:
    return {engine: rate for (name, engine), rate in rates.items() if name == model}


def _in_kinds(rivals: Sequence[str]) -> list[list[str]]:
    """Peers as they come, those that were told to use oneDNN, and those in several processes."""
    usual = [engine for engine in rivals if TOLD not in engine and BY_HAND not in engine]
    kinds = [usual, *([engine for engine in rivals if mark in engine] for mark in (TOLD, BY_HAND))]
    return [kind for kind in kinds if kind]


def _goals_of_gpt(said: str, ours: float, rates: Mapping[str, float]) -> list[tuple[str, float, float | None]]:
    ratios = {engine: ours / rate for engine, rate in rates.items()}
    goals = [
        (f"{said}: of the ceiling", 0.90, _first(ratios, CEILING)),
        (f"{said}: of the ceiling that multiplies as gradtrail does", 0.90, _first(ratios, FASTER_CEILING)),
        (f"{said}: of a training step", 1.2, _first(ratios, "training step")),
    ]
    for peer, wanted in (("bergson", 1.3), ("dattri", 1.0)):
        found = [engine for engine in ratios if engine.startswith(peer)]
        goals += [(f"{said}: against {engine}", wanted, ratios[engine]) for engine in found]
    return goals


def _out_of_reach(rates: Mapping[tuple[str, str], float]) -> list[str]:
    """The arithmetic of a goal that nothing which runs the model forward and backward by torch's products can meet."""
    gpt = {engine: rate for (model, engine), rate in rates.items() if model == "gpt"}
    ceiling, peer = (_first(gpt, prefix) for prefix in (CEILING, "bergson"))
    if not ceiling or not peer or 1.3 * peer <= ceiling or 1.3 * peer <= gpt.get(OURS, 0):
        return []
    share = peer / ceiling
    return [
        f"\n1.3 times bergson is out of reach here: bergson runs at {share:.2f} of the ceiling, and 1.3 times that is "
        f"{1.3 * share:.2f} of it. Nothing that runs the model forward and backward can be more than {1 / share:.2f} "
        "times as fast as bergson. Both keep 16 × 16 numbers a layer, in float32, at the same batch of 64 examples and "
        "with the same threads."
    ]


def _price_of_writing(rates: Mapping[tuple[str, str], float]) -> list[str]:
    """Why the fastest race is lost to a peer that keeps its gradients in memory."""
    mlp = {engine: rate for (model, engine), rate in rates.items() if model == "mlp"}
    written, held, peer = mlp.get("gradtrail"), mlp.get("gradtrail, kept in memory"), _first(mlp, "dattri")
    if not written or not held or not peer or written >= peer:
        return []
    measuring, writing = 1e6 / held, 1e6 / written - 1e6 / held
    return [
        f"\nOn the MLP writing is what loses to dattri, which writes nothing. Measuring an example takes "
        f"{measuring:.0f} µs; the sha256 of its row and five kilobytes in LanceDB take {writing:.0f} more. Measuring "
        "keeps every core busy, so that writing beside it hides little of this: a model so small is indexed about as "
        "fast as rows can be digested and written."
    ]


def _first(ratios: Mapping[str, float], prefix: str) -> float | None:
    return next((ratio for engine, ratio in ratios.items() if engine.startswith(prefix)), None)


def _scoring(results: Row) -> str:
    first = results["rows"][0]
    lines = [
        "## Scoring: exact, over every row\n",
        f"One pass scores {first['queries']} outputs against every row, keeps the top {first['top']} of both sides, "
        f"and sums by {' and '.join(first['attributes_summed'])}. Beside it: a bare LanceDB scan of the vector column, "
        "and the bare float32 product of those vectors, held in memory and widened by torch, with the queries. Wanted: "
        "at most 1.3 times the sum of the two. The product is torch's own, by MKL here, and in brackets the same by "
        "[oneDNN](attribution.md#faster-products), which scoring uses where it is faster.\n",
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
        verdict = "yes" if ratio <= 1.3 else "**missed**"
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


def _audits(results: Row) -> str:
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


def _faults(results: Row) -> str:
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


def _running() -> str:
    return (
        "## Measuring again\n\n"
        "`make bench-index`, `make bench-score`, `make bench-peers`, `make bench-audit` and `make bench-faults` write "
        "the results, `make bench-docs` this page. "
        "The first makes `.venv-peers`, an environment with the peers, because their requirements do not go together "
        "with ours: they would bring a CUDA build of torch. Leave the machine alone meanwhile.\n\n"
        "All engines run under the same settings: as many threads, and an allocator that keeps its memory, because a "
        "virtual machine pays dearly for every page that is touched for the first time. traker draws its whole "
        "projection again for every batch on a CPU, so it is timed over one batch; kronfluence keeps no index, so one "
        "scoring pass is timed; dattri keeps its gradients in memory, because its cache on disk needs an accelerator.\n"
    )


def picture(results: Row, path: Path) -> None:
    """One bar an engine, as a share of the ceiling."""
    mpl.use("svg")
    # The same results give the same file.
    mpl.rcParams.update({"svg.hashsalt": "gradtrail", "font.size": 9})
    from matplotlib import pyplot

    models = [model for model in NAMES if any(row["model"] == model for row in results["rows"])]
    heights = [1 + 0.22 * sum(row["model"] == model for row in results["rows"]) for model in models]
    figure, all_axes = pyplot.subplots(len(models), 1, figsize=(8, sum(heights)), height_ratios=heights, squeeze=False)
    for model, axes in zip(models, all_axes[:, 0], strict=True):
        rows = [row for row in results["rows"] if row["model"] == model]
        rows.sort(key=lambda row: row.get("ratio_to_ceiling", -1))
        for place, row in enumerate(rows):
            share = row.get("ratio_to_ceiling", 0)
            own = row["engine"].startswith(OURS)
            yardstick = row["engine"].startswith(("ceiling", "training"))
            axes.barh(place, share, color="#1f6f8b" if own else "#c9c9c9" if yardstick else "#d98f4e")
            rate = "cannot do it" if "unavailable" in row else f"{_rate(row['examples_per_second'])}/s"
            axes.text(share + 0.01, place, rate, va="center")
        axes.set_yticks(range(len(rows)), [row["engine"].partition(":")[0] for row in rows])
        axes.set_xlim(0, max(1.15, 1.15 * max(row.get("ratio_to_ceiling", 0) for row in rows)))
        axes.set_title(f"{NAMES[model]}: share of the ceiling, and examples per second", loc="left", fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--docs", type=Path, default=ROOT / "docs")
    options = parser.parse_args()
    index, score, peers = (
        json.loads((options.results / f"{name}.json").read_text()) for name in ("index", "score", "peers")
    )
    audit, faults = (
        json.loads(path.read_text()) if (path := options.results / f"{name}.json").is_file() else None
        for name in ("audit", "faults")
    )
    (options.docs / "benchmarks.md").write_text(markdown(index, score, peers, audit, faults))
    picture(index, options.docs / "benchmarks.svg")
    print(f"Written: {options.docs / 'benchmarks.md'} and benchmarks.svg")


if __name__ == "__main__":
    main()
