"""Ask the ledger, and check it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from gradtrail import printing
from gradtrail.commands import ledger_printing
from gradtrail.commands.options import AsJson, Home, load_settings, write_file
from gradtrail.errors import UsageError

app = typer.Typer()
AsOf = Annotated[
    str | None, typer.Option("--as-of", help="An audit: as the ledger was when it was recorded.", show_default=False)
]
SqlFormat = Literal["table", "csv", "json", "parquet"]
ANSWER_FORMATS: tuple[SqlFormat, ...] = ("csv", "json", "parquet")


@app.command()
def lineage(
    identifier: Annotated[str, typer.Argument(help="Output, example, audit, checkpoint, dataset version … id.")],
    up: Annotated[bool, typer.Option("--up", help="What it came from (default).")] = False,
    down: Annotated[bool, typer.Option("--down", help="What came from it.")] = False,
    as_of: AsOf = None,
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
    nodes = (connection.downstream if down else connection.upstream)(identifier, as_of=as_of)
    if html is not None:
        from gradtrail.reports.lineage_page import lineage_page
        from gradtrail.storage.files.atomic import write_atomically

        page = lineage_page(identifier, nodes, connection.edges_among(nodes), downstream=down)
        write_atomically(html, page.encode())
        printing.say_or_json({"html": str(html)}, f"Written to {html}.", as_json=as_json)
    else:
        ledger_printing.show_lineage(nodes, as_json=as_json)


@app.command()
def sql(
    statement: Annotated[str, typer.Argument(help="One SELECT over the ledger.")] = "",
    schema: Annotated[
        bool, typer.Option("--schema", help="Show tables, views, columns and macros, and what they mean.")
    ] = False,
    form: Annotated[
        SqlFormat | None,
        typer.Option("--format", help="Default: what the file's name ends in, else a table.", show_default=False),
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", help="File to write.", show_default=False)] = None,
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """Ask the ledger anything, read-only, on the published snapshot."""
    from gradtrail.lineage.sql.answering import run_sql, schema_text
    from gradtrail.lineage.sql.formats import encode_answer

    snapshot = load_settings(home=home).workspace().snapshot
    if schema:
        typer.echo(schema_text(snapshot))
        return
    if not statement:
        raise UsageError("No statement was given.", 'Try: gradtrail sql "SELECT * FROM audit", or --schema.')
    ending = output.suffix.removeprefix(".").lower() if output else ""
    by_name = next((each for each in ANSWER_FORMATS if each == ending), None)
    chosen: SqlFormat = form or ("json" if as_json else by_name or "table")
    if chosen == "parquet" and output is None:
        raise UsageError("Parquet is not text to print.", "Give a file: --output answer.parquet.")
    answer = run_sql(snapshot, statement)
    if chosen == "table":
        if output is not None:
            raise UsageError(
                f"A table for people is not for the file {output}.", "Choose --format csv, json or parquet."
            )
        ledger_printing.show_table(answer)
    elif output is None:
        sys.stdout.write(encode_answer(answer, chosen).decode())
    else:
        write_file(output, encode_answer(answer, chosen))
        printing.say(f"Written to {output}: {answer.num_rows:,} rows.")


@app.command("blast-radius")
def blast_radius(
    source: Annotated[str, typer.Option(help="A source.")] = "",
    example: Annotated[list[str] | None, typer.Option(help="Id of an example; may be repeated.")] = None,
    attribute: Annotated[str, typer.Option(help="Any attribute, as name=value.")] = "",
    as_of: AsOf = None,
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """Say which models, audits, outputs and reports some training data touched, and what nobody can say."""
    from gradtrail.api import connect

    name, _, value = attribute.partition("=")
    if bool(source) + bool(example) + bool(attribute) != 1 or (attribute and not (name and value)):
        raise UsageError(
            "The blast radius needs one thing to start from.",
            "Give --source NAME, --example ID or --attribute name=value.",
        )
    if source:
        name, values = "source", [source]
    else:
        name, values = ("example_id", list(example)) if example else (name, [value])
    found = connect(load_settings(home=home).home).blast_radius(name, *values, as_of=as_of)
    ledger_printing.show_blast_radius(found, as_json=as_json)


@app.command()
def compare(
    a: Annotated[str, typer.Argument(help="Audit id, or the beginning of one.")],
    b: Annotated[str, typer.Argument(help="Another.")],
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """Put two audits side by side: method, fidelity, outputs, shares by attribute, findings."""
    from gradtrail.api import connect

    ledger_printing.show_comparison(connect(load_settings(home=home).home).compare(a, b), as_json=as_json)
