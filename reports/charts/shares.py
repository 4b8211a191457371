"""Shares of influence as charts: rows in order, positions on a common axis, and what chance alone would give."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from gradtrail.nouns import Share, Side
from gradtrail.reports.formats import percent

MOST_ROWS = 12
_FIRST_ATTRIBUTES = ("source", "licence", "license")
_AXIS_STEPS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.25)
_MOST_TICKS = 5
_ROUNDING = 1e-9


@dataclass(frozen=True)
class ShareRow:
    """One attribute value. `bar`, `tick`, `low_at` and `high_at` are positions on the axis in per cent.

    `chance` is above, within or below the interval, or empty where none was measured.
    """

    value: str
    share: float
    training_share: float
    ratio: float
    interval: tuple[float, float] | None
    chance: str
    bar: float
    tick: float
    low_at: float
    high_at: float


@dataclass(frozen=True)
class ShareChart:
    """The values of one attribute on one side, the largest share first; `ticks` are (position, label)."""

    side: Side
    rows: tuple[ShareRow, ...]
    ticks: tuple[tuple[float, str], ...]
    has_intervals: bool


@dataclass(frozen=True)
class ShareFigure:
    """One attribute's charts on a common axis; a side without shares is None. `only_value`: there is no other.

    `values` is how many there are, `tested` how many of them have an interval.
    """

    attribute: str
    proponents: ShareChart | None
    opponents: ShareChart | None
    only_value: str | None
    values: int = 0
    tested: int = 0


def share_figures(shares: Iterable[Share], most_rows: int = MOST_ROWS) -> tuple[ShareFigure, ...]:
    """One figure per attribute: source and licence first, then the others by name.

    An attribute with more than `most_rows` values shows the largest and their rest as one row.
    """
    by_attribute: dict[str, list[Share]] = {}
    for share in shares:
        by_attribute.setdefault(share.attribute, []).append(share)
    return tuple(
        _figure(attribute, by_attribute[attribute], most_rows) for attribute in sorted(by_attribute, key=reading_order)
    )


def reading_order(attribute: str) -> tuple[int, str]:
    """Sort key of attribute names: source, licence, then the others by name."""
    first = attribute in _FIRST_ATTRIBUTES
    return (_FIRST_ATTRIBUTES.index(attribute) if first else len(_FIRST_ATTRIBUTES), attribute)


def _figure(attribute: str, shares: list[Share], most_rows: int) -> ShareFigure:
    values = {share.value for share in shares}
    proponents = _largest([share for share in shares if share.side == "proponent"], most_rows)
    opponents = _largest([share for share in shares if share.side == "opponent"], most_rows)
    longest = [
        max(share.share, share.training_share, share.interval_high or 0.0) for share in (*proponents, *opponents)
    ]
    ticks = _ticks(max(longest, default=0.0))
    return ShareFigure(
        attribute,
        _chart("proponent", proponents, ticks),
        _chart("opponent", opponents, ticks),
        next(iter(values)) if len(values) == 1 else None,
        len(values),
        len({share.value for share in shares if share.interval_high is not None}),
    )


def _largest(shares: list[Share], most_rows: int) -> list[Share]:
    """All rows where they are few; else the largest and their rest as one row without interval."""
    ordered = sorted(shares, key=lambda share: (-share.share, share.value))
    if len(ordered) <= most_rows:
        return ordered
    rest = ordered[most_rows:]
    together = Share(
        rest[0].output_id,
        rest[0].side,
        rest[0].attribute,
        f"{len(rest):,} other values",
        sum(share.share for share in rest),
        sum(share.training_share for share in rest),
    )
    return [*ordered[:most_rows], together]


def _ticks(largest: float) -> list[float]:
    step = next((step for step in _AXIS_STEPS if step * (_MOST_TICKS - 1) >= largest), _AXIS_STEPS[-1])
    steps = max(1, math.ceil(largest / step - _ROUNDING))
    return [step * position for position in range(steps + 1)]


def _chart(side: Side, shares: list[Share], ticks: list[float]) -> ShareChart | None:
    if not any(share.share > 0 for share in shares):
        return None
    end = ticks[-1]
    return ShareChart(
        side,
        tuple(_row(share, end) for share in shares),
        tuple((_position(tick, end), percent(tick).replace(".0%", "%")) for tick in ticks),
        any(share.interval_high is not None for share in shares),
    )


def _row(share: Share, end: float) -> ShareRow:
    interval, chance = None, ""
    if share.interval_low is not None and share.interval_high is not None:
        interval = (share.interval_low, share.interval_high)
        chance = "above" if share.share > interval[1] else "below" if share.share < interval[0] else "within"
    low, high = interval or (0.0, 0.0)
    return ShareRow(
        share.value,
        share.share,
        share.training_share,
        share.ratio,
        interval,
        chance,
        _position(share.share, end),
        _position(share.training_share, end),
        _position(low, end),
        _position(high, end),
    )


def _position(share: float, end: float) -> float:
    return round(100 * share / end, 2)
