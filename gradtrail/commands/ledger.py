"""Ask the ledger, and check it."""

from __future__ import annotations

from typing import Annotated

import typer

from gradtrail import printing
from gradtrail.commands.options import AsJson, Home
from gradtrail.errors import UsageError, VerificationError
from gradtrail.session import flow_session
from gradtrail.settings import load_settings

app = typer.Typer()


@app.command()
def lineage(
    identifier: Annotated[str, typer.Argument(help="Output, example, audit, checkpoint, dataset version … id.")],
    up: Annotated[bool, typer.Option("--up", help="What it came from (default).")] = False,
    down: Annotated[bool, typer.Option("--down", help="What came from it.")] = False,
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """Walk the chain from any id, up to its origins or down to what it touched."""
    from gradtrail.api import connect

    if up and down:
        raise UsageError("Both --up and --down were given.", "Choose one.")
    connection = connect(load_settings(home=home).home)
    nodes = connection.downstream(identifier) if down else connection.upstream(identifier)
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


@app.command()
def verify(home: Home = None, as_json: AsJson = False) -> None:
    """Check that nothing was changed, dropped or added: ledger, checkpoints, manifests, indexes, payloads, reports."""
    settings = load_settings(home=home)
    with flow_session(settings.home):
        from gradtrail.tasks.verifying import verify_workspace

        verification = verify_workspace(settings.workspace())
    printing.show_verification(verification, as_json=as_json)
    if verification.problems:
        raise typer.Exit(VerificationError.exit_code)
