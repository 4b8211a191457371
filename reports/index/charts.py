"""Small charts over the audits of one model: findings as bars, fidelity and shares as lines. One step an audit."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gradtrail.nouns import SEVERITIES, Severity
from gradtrail.reports.formats import number, percent, plural
from gradtrail.reports.index.model import IndexedAudit

WIDTH, HEIGHT = 240, 104
LEFT, RIGHT, TOP, BOTTOM = 36, 8, 8, 18
MOST_LINES = 5
_WIDEST_BAR = 14


@dataclass(frozen=True)
class Bar:
    """Findings of one severity in one audit; `title` says it in words."""

    severity: Severity
    x: float
    y: float
    width: float
    height: float
    title: str


@dataclass(frozen=True)
class Dot:
    """A figure of one audit; `low` and `high` are the ends of its error bar, where it has one."""

    x: float
    y: float
    low: float | None
    high: float | None
    title: str


@dataclass(frozen=True)
class Line:
    """One series; `paths` are its unbroken pieces, `last` its newest figure as text."""

    name: str
    paths: tuple[str, ...]
    dots: tuple[Dot, ...]
    last: str


@dataclass(frozen=True)
class Chart:
    """What is drawn on a canvas of WIDTH × HEIGHT; `ticks` are heights with their labels."""

    ticks: tuple[tuple[float, str], ...]
    bars: tuple[Bar, ...] = ()
    lines: tuple[Line, ...] = ()
    left_out: int = 0


def findings_chart(audits: Sequence[IndexedAudit]) -> Chart:
    """Findings of each audit, the most severe at the bottom."""
    totals = [sum(rule.count for rule in audit.past.fired) for audit in audits]
    top = max(1, *totals)
    width = min(_WIDEST_BAR, (WIDTH - LEFT - RIGHT) / len(audits) * 0.7)
    bars = []
    for place, audit in enumerate(audits):
        below = 0
        for severity in SEVERITIES:
            if count := audit.past.findings(severity):
                low, high = _y(below / top), _y((below + count) / top)
                title = f"{_name(audit)}: {plural(count, 'finding')}, {severity}"
                x = _x(place, len(audits)) - width / 2
                bars.append(Bar(severity, round(x, 1), high, round(width, 1), round(low - high, 1), title))
                below += count
    return Chart(((_y(0), "0"), (_y(1), str(top))), bars=tuple(bars))


def fidelity_chart(audits: Sequence[IndexedAudit]) -> Chart | None:
    """Fidelity with its standard error, where it was measured; None where it never was."""
    values = [audit.fidelity.value if audit.fidelity else None for audit in audits]
    errors = [audit.fidelity.standard_error if audit.fidelity else None for audit in audits]
    if all(value is None for value in values):
        return None
    bottom = min(0.0, *(value for value in values if value is not None))
    ticks = ((_y((0 - bottom) / (1 - bottom)), "0"), (_y(1), "1"))
    return Chart(ticks, lines=(_line("fidelity", audits, values, errors, bottom, 1.0),))


def share_chart(audits: Sequence[IndexedAudit], attribute: str) -> Chart | None:
    """Shares of support by the values of an attribute that ever had the largest; None where there are none."""
    series: Mapping[str, list[float | None]] = defaultdict(lambda: [None] * len(audits))
    for place, audit in enumerate(audits):
        for share in audit.past.shares:
            if share.side == "proponent" and share.attribute == attribute:
                series[share.value][place] = share.share
    if not series:
        return None
    peaks = {value: max(figure for figure in figures if figure is not None) for value, figures in series.items()}
    drawn = sorted(peaks, key=lambda value: (-peaks[value], value))[:MOST_LINES]
    top = math.ceil(max(peaks.values()) * 10) / 10 or 0.1
    lines = [_line(value, audits, series[value], None, 0.0, top) for value in drawn]
    return Chart(((_y(0), "0"), (_y(1), f"{top:.0%}")), lines=tuple(lines), left_out=len(series) - len(drawn))


def _line(
    name: str,
    audits: Sequence[IndexedAudit],
    values: Sequence[float | None],
    errors: Sequence[float | None] | None,
    bottom: float,
    top: float,
) -> Line:
    def height(value: float) -> float:
        return _y((min(max(value, bottom), top) - bottom) / (top - bottom))

    pieces: list[list[str]] = [[]]
    dots, last = [], ""
    for place, value in enumerate(values):
        if value is None:
            pieces.append([])
            continue
        error = errors[place] if errors else None
        last = percent(value) if errors is None else number(value, 2)
        said = f"{_name(audits[place])}: {name} {last}" + (f" ± {number(error, 2)}" if error is not None else "")
        x, y = _x(place, len(values)), height(value)
        low, high = (None, None) if error is None else (height(value - error), height(value + error))
        dots.append(Dot(x, y, low, high, said))
        pieces[-1].append(f"{x},{y}")
    return Line(name, tuple(" ".join(piece) for piece in pieces if len(piece) > 1), tuple(dots), last)


def _name(audit: IndexedAudit) -> str:
    return f"audit {audit.past.number}, version {audit.past.version}, {audit.past.recorded_at:%Y-%m-%d}"


def _x(place: int, count: int) -> float:
    """The middle of a step, so that one audit alone stands in the middle."""
    return round(LEFT + (WIDTH - LEFT - RIGHT) * (place + 0.5) / count, 1)


def _y(height: float) -> float:
    return round(HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * height, 1)
