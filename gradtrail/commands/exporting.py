"""Hand on what the ledger holds in forms that other tools read."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gradtrail import printing
from gradtrail.commands.options import AsJson, Home, load_settings
from gradtrail.errors import UsageError

if TYPE_CHECKING:
    import duckdb

app = typer.Typer()
export_app = typer.Typer(help="OpenLineage events, PROV documents, bills of materials.", no_args_is_help=True)
app.add_typer(export_app, name="export")

ToFile = Annotated[Path | None, typer.Option("--output", help="File to write; default: print.", show_default=False)]


@export_app.command()
def openlineage(
    output: Annotated[
        Path | None, typer.Option("--output", help="File to add to, one event a line.", show_default=False)
    ] = None,
    url: Annotated[str, typer.Option(help="OpenLineage consumer, for example http://marquez:5000.")] = "",
    namespace: Annotated[str, typer.Option(help="Namespace of jobs and datasets.")] = "gradtrail",
    after: Annotated[int, typer.Option(help="Only what the ledger recorded after this entry.", min=0)] = 0,
    api_key: Annotated[
        str, typer.Option(envvar="GRADTRAIL_OPENLINEAGE_API_KEY", help="Key of the consumer.", show_default=False)
    ] = "",
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """Ingests, indexes, calibrations and audits as OpenLineage run events, into a file or to a consumer."""
    _require("openlineage")
    from gradtrail.lineage.exports.openlineage_events import run_events
    from gradtrail.lineage.exports.openlineage_sending import append_to_file, send

    if bool(output) == bool(url):
        raise UsageError("Events need one place to go.", "Give either --output FILE or --url ADDRESS.")
    with _snapshot(home) as connection:
        events = list(run_events(connection, namespace=namespace, after=after))
    sent = append_to_file(events, output) if output else send(events, url, api_key=api_key)
    printing.say_or_json(
        {"events": sent, "to": str(output or url)},
        f"Exported {sent} OpenLineage events to {output or url}.",
        as_json=as_json,
    )


@export_app.command()
def prov(
    audit_id: Annotated[str, typer.Argument(help="Audit id, or the beginning of one.")],
    output: ToFile = None,
    home: Home = None,
) -> None:
    """One audit as PROV-JSON, the form of provenance of the W3C; influence stays influence, never derivation."""
    _require("prov")
    from gradtrail.lineage.exports.provenance import provenance_json
    from gradtrail.lineage.read.closure import resolve

    with _snapshot(home) as connection:
        kind, resolved = resolve(connection, audit_id)
        if kind != "audit":
            raise UsageError(f"{resolved} is a {kind.replace('_', ' ')}, not an audit.", "Give the id of an audit.")
        text = provenance_json(connection, resolved)
    _write(text, output)


@export_app.command()
def mlbom(
    model_version: Annotated[str, typer.Argument(help="NAME/3, as `gradtrail ingest` printed it.")],
    output: ToFile = None,
    home: Home = None,
) -> None:
    """One model version as a CycloneDX bill of materials: weights, dataset versions, licences, measured fidelity."""
    _require("cyclonedx")
    from gradtrail.lineage.exports.cyclonedx import bill_of_materials

    with _snapshot(home) as connection:
        text = bill_of_materials(connection, model_version)
    _write(text, output)


@export_app.command("with")
def with_extension(
    reference: Annotated[str, typer.Argument(help="Your function, module:function, that the settings allow.")],
    argument: Annotated[str, typer.Argument(help="What it is given besides the ledger.")] = "",
    output: ToFile = None,
    home: Home = None,
) -> None:
    """An export of your own: a function of the published snapshot and one text, which returns text."""
    from gradtrail.tasks.core.extensions import load_extension

    workspace = load_settings(home=home).workspace()
    export = load_extension(workspace, reference, "an export").value
    with workspace.ledger().read_snapshot() as connection:
        text = export(connection, argument)
    if not isinstance(text, str):
        raise UsageError(f"The export {reference} gave {type(text).__name__}.", "Let it return text.")
    _write(text, output)


@export_app.command()
def parquet(
    folder: Annotated[Path, typer.Argument(help="Folder to write; an earlier export in it is replaced.")],
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """The whole published snapshot as Parquet, one file a table or view."""
    from gradtrail.lineage.exports.parquet_export import export_parquet

    with _snapshot(home) as connection:
        written = export_parquet(connection, folder)
    printing.say_or_json(
        written,
        f"Exported {len(written.rows)} files with {sum(written.rows.values()):,} rows to {folder}.",
        as_json=as_json,
    )


def _require(module: str) -> None:
    if find_spec(module) is None:
        raise UsageError(f"This export needs the package {module}.", "Install it: pip install 'gradtrail[exports]'.")


def _snapshot(home: Path | None) -> duckdb.DuckDBPyConnection:
    return load_settings(home=home).workspace().ledger().read_snapshot()


def _write(text: str, output: Path | None) -> None:
    if output is None:
        typer.echo(text)
    else:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(text, "utf-8")
        typer.echo(f"Written to {output}.")
