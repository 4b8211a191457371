"""Outputs of production models: put files into the inbox, and see what the sources hold."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from gradtrail import printing
from gradtrail.commands.options import AsJson, Home, load_settings

app = typer.Typer(help="Outputs of production models, waiting to be audited.", no_args_is_help=True)


@app.command("add")
def add(
    file: Annotated[Path, typer.Argument(help="Parquet or JSON Lines, one record an output.")],
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """Put a file of outputs into the inbox; the next audit takes what is new in it."""
    from gradtrail.storage.sources.outputs import add_file

    workspace = load_settings(home=home).workspace()
    placed = add_file(file, workspace.inbox)
    text = f"In the inbox: {placed}\nThe next audit takes what is new in it."
    printing.say_or_json({"file": str(placed)}, text, as_json=as_json)


@app.command("list")
def list_(home: Home = None, as_json: AsJson = False) -> None:
    """Each source with its watermark: how many outputs are pending, waiting, sampled out or refused."""
    from gradtrail.tasks.collect.source_states import list_sources

    listed = list_sources(load_settings(home=home).workspace())
    if as_json:
        printing.print_json([asdict(each) for each in listed])
        return
    table = Table("source", "kind", "read up to", "seen", "pending", "waiting", "sampled out", "refused", "where")
    for each in listed:
        reached = f"{each.reached:%Y-%m-%d %H:%M:%S} UTC" if each.reached else "not yet"
        waiting = ", ".join(f"{count:,} of {escape(name)}" for name, count in each.waiting.items()) or "0"
        counts = (f"{each.sampled_out:,}", f"{each.refused:,}")
        table.add_row(
            each.name,
            each.kind,
            reached,
            f"{each.seen:,}",
            f"{each.pending:,}",
            waiting,
            *counts,
            escape(each.location),
        )
    printing.console().print(table)
