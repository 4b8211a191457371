"""Which parameter groups carried the attributions, and how they were weighted: bars in the order of the model."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from gradtrail.nouns import GroupContribution, Side
from gradtrail.reports.formats import number, percent

MOST_ROWS = 24
_FIRST_STEP = 0.05
_STEP_FACTORS = (2.0, 2.0, 2.5)
_MOST_INTERVALS = 5
_ROUNDING = 1e-9


@dataclass(frozen=True)
class GroupRow:
    """One group, or neighbours together where there are many. The bar is given in per cent of the axis."""

    name: str
    value: float
    text: str
    bar_at: float
    bar_width: float


@dataclass(frozen=True)
class GroupChart:
    """Rows from the input of the model to its output; `ticks` are (position, label), `zero` is where bars begin."""

    rows: tuple[GroupRow, ...]
    ticks: tuple[tuple[float, str], ...]
    zero: float


@dataclass(frozen=True)
class GroupFigure:
    """Both sides on a common axis; a side without attributions is None."""

    proponents: GroupChart | None
    opponents: GroupChart | None


def group_figure(contributions: Iterable[GroupContribution], most_rows: int = MOST_ROWS) -> GroupFigure | None:
    """The figure of one output, or of the mean over all; None without contributions, as in older audits.

    With more than `most_rows` groups, neighbours in the model share a row, and their shares add up.
    """
    by_side: dict[Side, list[tuple[str, float]]] = {}
    for each in contributions:
        by_side.setdefault(each.side, []).append((each.group, each.share))
    if not by_side:
        return None
    rows = {side: _merged(of_side, most_rows, sum) for side, of_side in by_side.items()}
    ticks = _ticks([value for of_side in rows.values() for _, value in of_side])
    charts = {side: _chart(of_side, ticks, _signed_percent) for side, of_side in rows.items()}
    return GroupFigure(charts.get("proponent"), charts.get("opponent"))


def weight_chart(
    weights: Mapping[str, float], in_order: Sequence[str], most_rows: int = MOST_ROWS
) -> GroupChart | None:
    """Weights of mean 1, from the input of the model to its output; None for the uniform weighting.

    Groups that `in_order` does not name come last. Neighbours that share a row show their mean weight.
    """
    if not weights:
        return None
    mean = math.fsum(weights.values()) / len(weights) or 1.0
    known = [name for name in dict.fromkeys(in_order) if name in weights]
    names = known + [name for name in weights if name not in known]
    rows = _merged([(name, weights[name] / mean) for name in names], most_rows, _mean)
    return _chart(rows, _ticks([value for _, value in rows]), number)


def _merged(
    groups: Sequence[tuple[str, float]], most_rows: int, together: Callable[[Sequence[float]], float]
) -> list[tuple[str, float]]:
    size = math.ceil(len(groups) / most_rows)
    if size <= 1:
        return list(groups)
    parts = [groups[start : start + size] for start in range(0, len(groups), size)]
    return [
        (part[0][0] if len(part) == 1 else f"{part[0][0]} … {part[-1][0]}", together([value for _, value in part]))
        for part in parts
    ]


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _ticks(values: Sequence[float]) -> list[float]:
    """Round positions from below the smallest value, or 0, to above the largest."""
    low, high = min(0.0, *values), max(0.0, *values)
    step, turn = _FIRST_STEP, 0
    while (high - low) / step > _MOST_INTERVALS - 1:
        step, turn = step * _STEP_FACTORS[turn % len(_STEP_FACTORS)], turn + 1
    first, last = math.floor(low / step + _ROUNDING), max(math.ceil(high / step - _ROUNDING), 1)
    return [step * position for position in range(first, last + 1)]


def _chart(rows: Sequence[tuple[str, float]], ticks: Sequence[float], in_words: Callable[[float], str]) -> GroupChart:
    low, span = ticks[0], ticks[-1] - ticks[0]

    def position(value: float) -> float:
        return round(100 * (value - low) / span, 2)

    return GroupChart(
        tuple(
            GroupRow(name, value, in_words(value), position(min(value, 0.0)), round(100 * abs(value) / span, 2))
            for name, value in rows
        ),
        tuple((position(tick), in_words(tick).replace(".0%", "%")) for tick in ticks),
        position(0.0),
    )


def _signed_percent(share: float) -> str:
    return f"−{percent(-share)}" if share < 0 else percent(share)
