"""Ask the ledger, and check it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gradtrail import printing
from gradtrail.commands.options import AsJson, Home
from gradtrail.errors import UsageError
from gradtrail.settings import load_settings

app = typer.Typer()


@app.command()
def lineage(
    identifier: Annotated[str, typer.Argument(help="Output, example, audit, checkpoint, dataset version … id.")],
    up: Annotated[bool, typer.Option("--up", help="What it came from (default).")] = False,
    down: Annotated[bool, typer.Option("--down", help="What came from it.")] = False,
    html: Annotated[
        Path | None, typer.Option("--html", help="Write it as a page with a graph.", show_default=False)
    ] = None,
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """Walk the chain from any id, up to its origins or down to what it touched."""
    from gradtrail.api import connect

    if up and down:
        raise UsageError("Both --up and --down were given.", "Choose one.")
    connection = connect(load_settings(home=home).home)
    nodes = connection.downstream(identifier) if down else connection.upstream(identifier)
    if html is not None:
        from gradtrail.reports.lineage_page import lineage_page
        from gradtrail.storage.atomic import write_atomically

        page = lineage_page(identifier, nodes, connection.edges_among(nodes), downstream=down)
        write_atomically(html, page.encode())
        printing.say_or_json({"html": str(html)}, f"Written to {html}.", as_json=as_json)
    else:
        printing.show_lineage(nodes, as_json=as_json)


@app.command()
def sql(
    statement: Annotated[str, typer.Argument(help="One SELECT over the ledger.")] = "",
    schema: Annotated[bool, typer.Option("--schema", help="Show tables, columns and what they mean.")] = False,
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """Ask the ledger anything, read-only, on the published snapshot."""
    from gradtrail.lineage.sql import run_sql, schema_text

    snapshot = load_settings(home=home).workspace().snapshot
    if schema:
        typer.echo(schema_text(snapshot))
    elif statement:
        printing.show_table(run_sql(snapshot, statement), as_json=as_json)
    else:
        raise UsageError("No statement was given.", 'Try: gradtrail sql "SELECT * FROM audit", or --schema.')
