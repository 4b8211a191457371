"""What a page repeats thousands of times: cards of examples and rows of charts, as HTML text.

A template engine takes as long for one value as these functions for a whole row. Every text is escaped here.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from markupsafe import Markup

from gradtrail.reports import formats
from gradtrail.reports.charts.groups import GroupChart
from gradtrail.reports.charts.shares import ShareChart, ShareRow
from gradtrail.reports.views import ShownCard, ShownPreview

_CHANCE_MARKS = {"above": "▲", "below": "▼", "within": ""}


def cards(shown_cards: Sequence[ShownCard], described: str) -> Markup:
    """A list of cards of one side; `described` says what their pictures show, before the example's id."""
    strongest = max((shown.card.share for shown in shown_cards if shown.card.share is not None), default=0.0)
    first = shown_cards[0]
    kind = "image" if first.preview is None or first.preview.kind == "image" else "wide"
    items = "".join(_card(shown, strongest, described) for shown in shown_cards)
    return _html(f'<ol class="cards {kind} {first.card.side}">\n{items}</ol>')


def share_rows(chart: ShareChart, *, brief: bool, exact: bool) -> Markup:
    """The rows of a chart of shares: name, bar, share, share in training (unless `brief`), ratio, interval by chance.

    The style sheet draws the bar from positions on the axis; `exact` rows carry their figures in full besides.
    """
    return _html("".join(_share_row(row, brief, exact, chart.has_intervals) for row in chart.rows))


def group_rows(chart: GroupChart, *, exact: bool) -> Markup:
    """The rows of a chart of layers: name, bar and figure."""
    rows = []
    for row in chart.rows:
        negative = ' class="negative"' if row.value < 0 else ""
        figure = _data(row.value, row.text) if exact else row.text
        bar = f'<td{negative} style="--a:{row.bar_at}%;--s:{row.bar_width}%"></td>'
        rows.append(f'<tr><th scope="row">{_text(row.name)}</th>{bar}<td>{figure}</td></tr>\n')
    return _html("".join(rows))


def preview(shown: ShownPreview | None, description: str) -> Markup:
    """What is shown of an example or output; `description` is the picture's text for those who do not see it."""
    if shown is None:
        return _html('<div class="preview none" aria-hidden="true">no preview</div>')
    if shown.picture is not None:
        label = _text(description)
        return _html(f'<span class="picture {shown.picture.name}" role="img" aria-label="{label}"></span>')
    if shown.kind == "text":
        return _html(f'<blockquote class="preview text" dir="auto">{_text(shown.text)}</blockquote>')
    fields = (f"<div><dt>{_text(name)}</dt><dd><bdi>{_text(value)}</bdi></dd></div>\n" for name, value in shown.row)
    return _html(f'<dl class="preview row">\n{"".join(fields)}</dl>')


def _card(shown: ShownCard, strongest: float, described: str) -> str:
    card = shown.card
    rank = f'<span class="rank">{card.rank}</span> '
    parts = ["<li>", preview(shown.preview, f"{described} {card.example_id}"), "\n"]
    if card.score is not None:
        parts += ['<p class="card-score">', rank, _data(card.score, formats.score(card.score)), "</p>\n"]
        rank = ""
    if card.share is not None:
        width = 100 * card.share / strongest if strongest else 0.0
        meter = f'<span class="meter" style="--s:{width:.1f}%"></span> '
        parts += ['<p class="card-share">', rank, meter, _data(card.share, formats.percent(card.share)), "</p>\n"]
    parts.append(f'<p class="card-id"><bdi class="id">{_text(card.example_id)}</bdi></p>\n')
    if shown.attributes:
        pairs = (f"<dt>{_text(name)}</dt><dd>{_text(value or '(none)')}</dd>" for name, value in shown.attributes)
        parts += ['<dl class="attributes">', *pairs, "</dl>\n"]
    parts.append("</li>\n")
    return "".join(parts)


def _share_row(row: ShareRow, brief: bool, exact: bool, with_chance: bool) -> str:
    whisker = f'<i style="--l:{row.low_at}%;--h:{row.high_at}%"></i>' if row.interval else ""
    bar = f'<td style="--s:{row.bar}%;--t:{row.tick}%">{whisker}</td>'
    figures = [(row.share, formats.percent(row.share))]
    if not brief:
        figures.append((row.training_share, formats.percent(row.training_share)))
    figures.append((row.ratio, formats.ratio(row.ratio) if row.training_share else "–"))
    cells = "".join(f"<td>{_data(value, text) if exact and text != '–' else text}</td>" for value, text in figures)
    chance = _chance(row) if with_chance else ""
    return f'<tr><th scope="row">{_text(row.value or "(none)")}</th>{bar}{cells}{chance}</tr>\n'


def _chance(row: ShareRow) -> str:
    if row.interval is None:
        return '<td class="chance">–</td>'
    low, high = formats.percent(row.interval[0]).replace("%", ""), formats.percent(row.interval[1])
    mark = f'{_CHANCE_MARKS[row.chance]}<span class="hidden">{row.chance} </span>'
    position = f'<span class="position {row.chance}" title="{row.chance} chance">{mark}</span>'
    return f'<td class="chance">{position}<span class="interval">{escape(low)}–{escape(high)}</span></td>'


def _data(value: float, text: str) -> str:
    return f'<data value="{value}">{escape(text)}</data>'


def _text(text: str) -> str:
    return escape(str(formats.printable(text)))


def _html(text: str) -> Markup:
    """Text whose every part was escaped above."""
    return Markup(text)  # noqa: S704
