"""The two figures: fidelity by amount of further training, and the sweep of dampings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pictures

from fidelity.candidates import FURTHER

Row = Mapping[str, Any]
SHOWN = (
    ("grad_dot", "#8a8a8a", "o"),
    ("tracin_cp", "#c9a227", "v"),
    ("influence", "#7fb3d5", "s"),
    ("influence_global", "#1f6f8b", "D"),
    (FURTHER, "#0b3c49", "^"),
)
METRICS = {"fidelity_subset": "random halves left out", "fidelity_loo": "single examples left out"}


def by_training(rows: Sequence[Row], titles: Mapping[str, str], path: Path) -> None:
    """Fidelity over steps: ours under uniform weights tuned for each amount, untuned influence, best peer, ceiling."""
    pyplot = pictures.pyplot(8)
    figure, panels = pyplot.subplots(
        len(METRICS), len(titles), figsize=(3.3 * len(titles), 6), squeeze=False, layout="constrained"
    )
    for line, metric in enumerate(METRICS):
        for column, (task, title) in enumerate(titles.items()):
            axes = panels[line, column]
            own = [row for row in rows if row["task"] == task and row["metric"] == metric]
            steps = sorted({row["steps"] for row in own})
            ceilings = {row["steps"]: row["ceiling"] for row in own}
            axes.plot(steps, [ceilings[step] for step in steps], color="black", lw=0.8, ls=":", label="ceiling")
            for method, colour, marker in SHOWN:
                found = {
                    row["steps"]: row
                    for row in own
                    if row["engine"] == "gradtrail" and row["method"] == method and row["weighting"] == "uniform"
                }
                if found:
                    axes.errorbar(
                        list(found),
                        [row["value"] for row in found.values()],
                        [row["standard_error"] for row in found.values()],
                        color=colour, marker=marker, ms=3.5, lw=1.2, label=method,
                    )  # fmt: skip
            peers = [row for row in own if not row["engine"].startswith(("gradtrail", "baseline"))]
            if peers:
                chosen = [max((row for row in peers if row["steps"] == step), key=_selected)["value"] for step in steps]
                axes.plot(steps, chosen, color="#d98f4e", marker="x", ms=4, lw=1.2, label="best peer")
            axes.set_xscale("log")
            axes.minorticks_off()
            axes.set_ylim(-0.05, 1.05)
            axes.set_title(f"{title}\n{METRICS[metric]}", fontsize=8, loc="left")
            axes.set_xlabel("steps of further training")
            axes.spines[["top", "right"]].set_visible(False)
    panels[0, 0].set_ylabel("Spearman")
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=7, frameon=False)
    pictures.save_svg(figure, path)


def sweep(rows: Sequence[Row], titles: Mapping[str, str], path: Path) -> None:
    """Heat maps over damping and amount of further training, block and global, with LDS as the last column of each."""
    pyplot = pictures.pyplot(8)
    methods = {"influence": "block", "influence_global": "global"}
    figure, panels = pyplot.subplots(
        len(methods), len(titles), figsize=(3.3 * len(titles), 6.4), squeeze=False, layout="constrained"
    )
    for line, (method, name) in enumerate(methods.items()):
        for column, (task, title) in enumerate(titles.items()):
            axes = panels[line, column]
            own = [row for row in rows if row["task"] == task and row["method"] == method]
            kind = own[0]["curvature"]
            dampings = sorted({row["damping"] for row in own})
            steps = sorted({row["steps"] for row in own if row["metric"] == "fidelity_subset"})
            grid = np.full((len(dampings), len(steps) + 1), np.nan)
            for row in own:
                place = len(steps) if row["metric"] == "lds" else steps.index(row["steps"])
                grid[dampings.index(row["damping"]), place] = row["value"]
            # Each column from its own best: what matters is where the ridge runs.
            below = grid - np.nanmax(grid, axis=0, keepdims=True)
            image = axes.imshow(below, aspect="auto", origin="lower", cmap="viridis", vmin=-0.3, vmax=0)
            for place in range(grid.shape[1]):
                best = int(np.nanargmax(grid[:, place]))
                axes.text(place, best, f"{grid[best, place]:.2f}", ha="center", va="center", fontsize=7)
            axes.set_xticks(range(len(steps) + 1), [*map(str, steps), "LDS"], fontsize=7)
            axes.set_yticks(range(0, len(dampings), 2), [f"{dampings[at]:.0e}" for at in range(0, len(dampings), 2)])
            axes.tick_params(axis="y", labelsize=7)
            axes.set_title(f"{title}\n{name} curvature ({kind})", fontsize=8, loc="left")
    panels[0, 0].set_ylabel("damping")
    figure.colorbar(image, ax=panels, shrink=0.6, label="Spearman below the best of its column")
    pictures.save_svg(figure, path)


def _selected(row: Row) -> float:
    value: float = row["value_on_selection_queries"]
    return value
