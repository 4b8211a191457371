"""Write docs/fidelity-evidence.md and its figures from the results, and nothing else: losses as plainly as wins."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fidelity.candidates import FURTHER
from fidelity.figures import by_training, sweep
from machine import RESULTS, ROOT

Row = Mapping[str, Any]
OURS = "gradtrail"
NAMES = {"fidelity_subset": "fidelity, halves", "fidelity_loo": "fidelity, single examples", "lds": "LDS"}
SAID = {
    "better": "yes",
    "ahead": "ahead, by less than a tenth of the gap",
    "tie": "**tie**",
    "behind": "**behind**",
}
WEIGHTED = {"self_supervised": "self-supervised", "further_training": "further-training", "retraining": "retraining"}
_QUESTION = ("task", "metric", "steps")
TRIED = ROOT / "benchmarks" / "fidelity" / "tried.md"


def markdown(results: Row, comparisons: Sequence[Row]) -> str:
    """The whole page."""
    described, rows = results["environment"], results["rows"]
    verdicts = [row for row in comparisons if row["compared"].startswith("best")]
    gains = [row for row in comparisons if row["compared"].startswith("learned")]
    parts = [
        "# Evidence for fidelity and learned weights\n",
        "Written by `make bench-fidelity` from `benchmarks/results/fidelity*.json`. Four small tasks on data that "
        "ships in Python packages; what is claimed in [fidelity](fidelity.md) is measured here against what further "
        "training and retraining really do.\n",
        _how(described),
        _tasks(described, rows),
        _wanted(verdicts, gains),
        "## Fidelity by amount of further training\n",
        "![Fidelity by amount of further training](fidelity-by-training.svg)\n",
        "Every method has the damping that was best for each amount on the selection queries. First-order methods "
        "start high and fall as training lengthens; methods with curvature fall less, and need less damping.\n",
        "![Damping against amount of training](fidelity-sweep.svg)\n",
        "Damping is the horizon: from left to right the best point of a column moves to smaller dampings.\n",
        _verdicts(verdicts, rows),
        _gains(gains),
        _unlabelled(gains),
        TRIED.read_text() if TRIED.is_file() else "",
        *(_table(task, said["title"], rows) for task, said in described["tasks"].items()),
        _unavailable(described["tasks"]),
    ]
    return "\n".join(part for part in parts if part)


def _how(described: Row) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in described["versions"].items())
    return (
        f"Measured on {described['measured_at'][:10]}: {described['cpu']}, one thread a process; "
        f"Python {described['python']}, {versions}.\n\n"
        "Queries are held-out examples in three disjoint sets: weights are fitted on the first, and damping, curvature "
        "and best method chosen on the second; all figures are of the third. Peers are given the same weights, "
        "examples, queries and dampings, cover the same parameters where they have a rule for them, and are tuned on "
        "the same second set. Figures are mean Spearman correlations over queries ± their standard error; differences "
        "are paired over queries. LDS compares with models trained from scratch on random halves. Ceilings come from "
        "the agreement of seeds: they say what noise leaves within reach, not what a sum of scores can reach, since "
        "effects of leaving out half of the data do not add up exactly.\n\n"
        "Methods, grids, and the few strengths of self-supervised weights were settled on an earlier draw of examples "
        "and queries from the same data, report queries included. These figures are of another draw, made when all of "
        "that stood still, and of the first run on it; only `unrolled` joined when they were known, with lengths of "
        "training a half power of ten apart, and stayed as it was first run.\n"
    )


def _tasks(described: Row, rows: Sequence[Row]) -> str:
    lines = [
        "| task | parameters (covered) | data | halves × seeds | singles × seeds | retrained × seeds | LDS ceiling |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for task, said in described["tasks"].items():
        amounts = said["amounts"]
        ceiling = next(row["ceiling"] for row in rows if row["task"] == task and row["metric"] == "lds")
        counts = " | ".join(
            f"{amounts[one]} × {amounts[other]}"
            for one, other in (("halves", "half_seeds"), ("singles", "single_seeds"), ("subsets", "subset_seeds"))
        )
        covered = f"{said['parameters']:,} ({said['covered_parameters']:,})"
        lines.append(f"| {said['title']} | {covered} | {amounts['training']} | {counts} | {ceiling:.2f} |")
    return "\n".join(lines) + "\n"


def _wanted(verdicts: Sequence[Row], gains: Sequence[Row]) -> str:
    """What was set as goals, task by task, and what was found."""
    lines = [
        "## What was wanted, and what was found\n",
        "Fidelity counts every amount of further training, halves and single examples; *better* closes at least a "
        "tenth of the gap between the best peer and the ceiling by more than two standard errors. Weights count "
        "methods (and amounts): significantly better than uniform against significantly worse.\n",
        "| task | fidelity against the best peer | LDS against the best peer "
        "| further-training weights: fidelity, halves | self-supervised weights: LDS |",
        "|---|---|---|---|---|",
    ]
    for task in dict.fromkeys(row["task"] for row in gains):
        own = [row for row in verdicts if row["task"] == task]
        fidelity = Counter(row["verdict"] for row in own if row["metric"] != "lds")
        counted = ", ".join(f"{name} {fidelity[name]}" for name in SAID if fidelity[name]) or "no peers"
        lds = next((SAID[row["verdict"]] for row in own if row["metric"] == "lds"), "no peers")
        weights = []
        for metric, weighting in (("fidelity_subset", "further_training"), ("lds", "self_supervised")):
            found = [
                row
                for row in gains
                if row["task"] == task and row["metric"] == metric and row["weighting"] == weighting
            ]
            better = sum(row["difference"] > 2 * row["standard_error"] for row in found)
            worse = sum(row["difference"] < -2 * row["standard_error"] for row in found)
            weights.append(f"{better} better, {worse} worse, of {len(found)}")
        lines.append(f"| {task} | {counted} | {lds} | {weights[0]} | {weights[1]} |")
    return "\n".join(lines) + "\n"


def _verdicts(verdicts: Sequence[Row], rows: Sequence[Row]) -> str:
    lines = [
        "## Best of ours against the best peer\n",
        "Wanted: at least a tenth of the gap between the best peer and the ceiling closed, by more than two standard "
        "errors. Both sides are the best on the selection queries; a difference within two standard errors is a tie. "
        f"`{FURTHER}` is a function of the library and weights fitted to retraining are of this page only; *in audits* "
        "is the best without both.\n",
        "| task | figure | steps | ours | | best peer | | ceiling | difference | of the gap | wanted | in audits | |",
        "|---|---|---:|---|---:|---|---:|---:|---:|---:|---|---|---:|",
    ]
    for row in verdicts:
        difference = f"{row['difference']:+.3f} ± {row['standard_error']:.3f}"
        audited = _best_in_audits([each for each in rows if all(each[name] == row[name] for name in _QUESTION)])
        lines.append(
            f"| {row['task']} | {NAMES[row['metric']]} | {row['steps']} | {row['ours']} | {row['ours_value']:.3f} | "
            f"{row['peer']} | {row['peer_value']:.3f} | {row['ceiling']:.3f} | {difference} | {row['closed']:.0%} | "
            f"{SAID[row['verdict']]} | {audited['method']}, {audited['weighting']} | {audited['value']:.3f} |"
        )
    return "\n".join(lines) + "\n"


def _best_in_audits(rows: Sequence[Row]) -> Row:
    """On the selection queries, among what `gradtrail audit` can do."""
    offered = [
        row for row in rows if row["engine"] == OURS and row["method"] != FURTHER and row["weighting"] != "retraining"
    ]
    return max(offered, key=lambda row: float(row["value_on_selection_queries"]))


def _gains(gains: Sequence[Row]) -> str:
    """Learned weights against uniform ones: fidelity after the longest training, and LDS."""
    lines = [
        "## Learned weights against uniform ones\n",
        "Differences of the same method, each at its own best damping; *significant* beyond two standard errors. "
        "Self-supervised weights are learned without any measured effect; how strongly to weight is chosen on the "
        "selection queries, as damping is. All weights fall back to uniform where they do no better there (a "
        "difference of zero).\n",
        "| task | figure | weights | significantly better | no difference | significantly worse | mean difference |",
        "|---|---|---|---:|---:|---:|---:|",
    ]
    for key in dict.fromkeys((row["task"], row["metric"], row["weighting"]) for row in gains):
        own = [row for row in gains if (row["task"], row["metric"], row["weighting"]) == key]
        better = sum(row["difference"] > 2 * row["standard_error"] for row in own)
        worse = sum(row["difference"] < -2 * row["standard_error"] for row in own)
        equal = len(own) - better - worse
        mean = sum(row["difference"] for row in own) / len(own)
        lines.append(
            f"| {key[0]} | {NAMES[key[1]]} | {WEIGHTED[key[2]]} | {better} of {len(own)} | {equal} | {worse} | "
            f"{mean:+.3f} |"
        )
    return "\n".join(lines) + "\n"


def _unlabelled(gains: Sequence[Row]) -> str:
    """What weights learned without labels gain in LDS, method by method."""
    own = [row for row in gains if row["metric"] == "lds" and row["weighting"] == "self_supervised"]
    found = {(row["method"], row["task"]): row for row in own}
    tasks, methods = list(dict.fromkeys(row["task"] for row in own)), sorted({row["method"] for row in own})
    lines = [
        "Self-supervised weights, LDS gained over uniform weights; in bold beyond two standard errors:\n",
        f"| method | {' | '.join(tasks)} |",
        "|---" + "|---:" * len(tasks) + "|",
    ]
    for method in methods:
        cells = [_gained(found.get((method, task))) for task in tasks]
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _gained(row: Row | None) -> str:
    if row is None:
        return "—"
    said = f"{row['difference']:+.3f} ± {row['standard_error']:.3f}"
    return f"**{said}**" if abs(row["difference"]) > 2 * row["standard_error"] else said


def _table(task: str, title: str, rows: Sequence[Row]) -> str:
    """Every engine, method and weighting: shortest and longest training, and LDS."""
    own = [row for row in rows if row["task"] == task]
    steps = sorted({row["steps"] for row in own if row["metric"] == "fidelity_subset"})
    columns = [
        *(("fidelity_subset", step) for step in (steps[0], steps[-1])),
        *(("fidelity_loo", step) for step in (steps[0], steps[-1])),
        ("lds", next(row["steps"] for row in own if row["metric"] == "lds")),
    ]
    found = {
        (row["engine"], row["method"], row["weighting"], row["metric"], row["steps"]): row
        for row in own
        if (row["metric"], row["steps"]) in columns
    }
    heads = " | ".join(
        f"halves, {step}" if kind == "fidelity_subset" else f"single, {step}" for kind, step in columns[:4]
    )
    lines = [
        f"## {title[0].upper()}{title[1:]}\n",
        f"| engine | method | weights | {heads} | LDS |",
        "|---|---|---" + "|---:" * 5 + "|",
    ]
    ceilings = " | ".join(f"{_of(found, kind, step)['ceiling']:.3f}" for kind, step in columns)
    lines.append(f"| ceiling | | | {ceilings} |")
    names = dict.fromkeys(key[:3] for key in found)
    for engine, method, weighting in sorted(names, key=lambda name: (not name[0].startswith(OURS), name)):
        cells = [found.get((engine, method, weighting, kind, step)) for kind, step in columns]
        figures = " | ".join(
            "—" if cell is None else f"{cell['value']:.3f} ± {cell['standard_error']:.3f}" for cell in cells
        )
        lines.append(f"| {engine} | {method} | {WEIGHTED.get(weighting, weighting)} | {figures} |")
    return "\n".join(lines) + "\n"


def _of(found: Mapping[tuple[str, str, str, str, int], Row], kind: str, step: int) -> Row:
    return next(row for key, row in found.items() if key[3:] == (kind, step))


def _unavailable(described: Mapping[str, Row]) -> str:
    lines = ["## What peers could not do\n", "| task | engine and method | reason |", "|---|---|---|"]
    for task, said in described.items():
        for what, reason in said["unavailable"].items():
            lines.append(f"| {task} | {what} | {reason.replace('|', '/')} |")
    return "\n".join(lines) + "\n" if any(said["unavailable"] for said in described.values()) else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--docs", type=Path, default=ROOT / "docs")
    options = parser.parse_args()
    results, comparisons, swept = (
        json.loads((options.results / f"fidelity{suffix}.json").read_text())
        for suffix in ("", "-comparisons", "-sweep")
    )
    titles = {task: said["title"].partition(" (")[0] for task, said in results["environment"]["tasks"].items()}
    (options.docs / "fidelity-evidence.md").write_text(markdown(results, comparisons["rows"]))
    by_training(results["rows"], titles, options.docs / "fidelity-by-training.svg")
    sweep(swept["rows"], titles, options.docs / "fidelity-sweep.svg")
    print(f"Written: {options.docs / 'fidelity-evidence.md'} and its figures")


if __name__ == "__main__":
    main()
