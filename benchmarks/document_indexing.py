"""The part of docs/benchmarks.md about indexing: every engine's speed, what was wanted, and a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pictures

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


def indexing_section(results: Row) -> str:
    """The tables of all models, and the goals."""
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
        "takes [oneDNN](attribution-reference.md#faster-products), which any engine could: the second ceiling does, "
        "and peers that were *told* run once more with torch's setting for it, which holds for attention, too.\n"
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


def picture(results: Row, path: Path) -> None:
    """One bar an engine, as a share of the ceiling."""
    pyplot = pictures.pyplot(9)
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
    pictures.save_svg(figure, path)
