"""What commands print about the ledger's larger answers."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

from gradtrail import printing
from gradtrail.digests import short

if TYPE_CHECKING:
    from gradtrail.lineage.blast_radius import BlastRadius
    from gradtrail.lineage.comparisons import Comparison

_MOST_SHOWN = 20
_LONGEST_TEXT = 40


def show_blast_radius(found: BlastRadius, *, as_json: bool) -> None:
    """What some training data touched, the kinds in order, and what is unseen."""
    if as_json:
        return printing.print_json(asdict(found))
    values = ", ".join(found.values)
    printing.say(f"{found.examples:,} examples with {found.attribute} {values} touched:")
    out = printing.console()
    for kind in dict.fromkeys(each.kind for each in found.touched):
        rows = [each for each in found.touched if each.kind == kind]
        name = kind.replace("_", " ")
        table = Table(name, "how it is known", "side", "examples", "best rank", "share", box=None, pad_edge=False)
        for each in rows[:_MOST_SHOWN]:
            figures = (
                each.side or "",
                "" if each.examples is None else f"{each.examples:,}",
                "" if each.best_rank is None else str(each.best_rank),
                "" if each.share is None else f"{each.share:.1%}",
            )
            table.add_row(escape(each.id), each.evidence, *figures)
        out.print(f"[bold]{len(found.ids(kind)):,} {name}{'' if len(found.ids(kind)) == 1 else 's'}[/]")
        out.print(table)
        if len(rows) > _MOST_SHOWN:
            printing.say(f"… and {len(rows) - _MOST_SHOWN:,} more lines; --json has all.")
    for hidden in found.unseen:
        printing.say(f"Not seen: {hidden.number:,} {hidden.what}. {hidden.meaning}")
    return None


def show_comparison(found: Comparison, *, as_json: bool) -> None:
    """Two audits side by side; what differs is marked."""
    if as_json:
        return printing.print_json(asdict(found))
    titles = [f"{short(audit_id)}" for audit_id in (found.a, found.b)]
    table = Table("", "", *titles, "difference", box=None, pad_edge=False)
    for line in found.lines:
        difference = "" if line.difference is None or line.same else f"{line.difference:+.4g}"
        cells = (_cut(line.a), _cut(line.b), difference)
        style = "dim" if line.same else None
        table.add_row(line.aspect, escape(line.name), *map(escape, cells), style=style)
    printing.console().print(table)
    return None


def _cut(text: str | None) -> str:
    if text is None:
        return "—"
    try:
        return f"{float(text):.4g}"
    except ValueError:
        return text if len(text) <= _LONGEST_TEXT else f"{text[: _LONGEST_TEXT - 1]}…"
