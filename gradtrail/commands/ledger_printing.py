"""What commands print about the ledger's larger answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table
from rich.tree import Tree

from gradtrail import printing
from gradtrail.digests import short

if TYPE_CHECKING:
    import pyarrow

    from gradtrail.lineage.read.answers import LineageNode
    from gradtrail.lineage.read.comparisons import Comparison
    from gradtrail.lineage.read.reach import BlastRadius

_MOST_SHOWN = 20
_LONGEST_TEXT = 40


def show_lineage(nodes: Sequence[LineageNode], *, as_json: bool) -> None:
    """A closure as a tree: the start at the root, every node under the one it was reached from."""
    if as_json:
        return printing.print_json(nodes)
    if not nodes:
        return printing.say("Nothing.")
    children: dict[str, list[LineageNode]] = {}
    for node in nodes[1:]:
        children.setdefault(f"{node.parent_kind}:{node.parent}", []).append(node)
    tree = Tree(_node_text(nodes[0]))
    open_branches = [(tree, nodes[0])]
    while open_branches:
        branch, node = open_branches.pop()
        for child in children.get(f"{node.kind}:{node.node_id}", ()):
            open_branches.append((branch.add(_node_text(child)), child))
    printing.console().print(tree, soft_wrap=True)
    return None


def show_table(table: pyarrow.Table) -> None:
    """Rows of a query."""
    out = printing.console()
    shown = Table(*map(escape, table.column_names), box=None, pad_edge=False)
    for row in table.to_pylist():
        shown.add_row(*(escape(_plain(value)) for value in row.values()))
    out.print(shown)
    out.print(f"[dim]{table.num_rows:,} rows[/]")


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


def _node_text(node: LineageNode) -> str:
    relation = f" [dim]· {escape(node.relation.replace('_', ' '))}[/]" if node.relation else ""
    known_by_label = node.label in (node.node_id, node.node_id.partition("@")[0])
    name = escape(node.label) + ("" if known_by_label else f" [dim]{escape(node.node_id)}[/]")
    return f"[bold]{escape(node.kind.replace('_', ' '))}[/] {name}{relation}"


def _plain(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, datetime):
        return value.isoformat(sep=" ", timespec="seconds")
    return "" if value is None else str(value)
