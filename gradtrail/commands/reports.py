"""Find, serve and compare reports."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from gradtrail import printing
from gradtrail.commands import audits_printing
from gradtrail.commands.options import AsJson, Home, load_settings
from gradtrail.errors import UsageError
from gradtrail.session import flow_session

if TYPE_CHECKING:
    from gradtrail.settings import Settings

app = typer.Typer()
DEFAULT_PORT = 8650


@app.command()
def report(
    audit_id: Annotated[str, typer.Argument(help="Audit id, or the beginning of one; default: the newest.")] = "",
    serve: Annotated[
        bool, typer.Option("--serve", help="Serve the index and all reports to this machine, until stopped.")
    ] = False,
    port: Annotated[
        int, typer.Option(help="Port of --serve; 0 for any that is free.", min=0, max=65535)
    ] = DEFAULT_PORT,
    compare: Annotated[
        tuple[str, str] | None,
        typer.Option(help="Put two audits side by side on a page of their own.", metavar="A B", show_default=False),
    ] = None,
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """Find the report of an audit, and write it again from the ledger if its file is gone; serve or compare reports."""
    if sum((bool(audit_id), serve, compare is not None)) > 1:
        raise UsageError("An audit id, --serve and --compare each ask for something else.", "Choose one.")
    settings = load_settings(home=home)
    if serve:
        return _serve(settings, port)
    with flow_session(settings.home):
        if compare:
            from gradtrail.tasks.report.index_pages import write_comparison

            page = str(write_comparison(settings.workspace(), *compare))
            return printing.say_or_json({"html": page}, f"Comparison: {page}", as_json=as_json)
        from gradtrail.tasks.report.writing import ensure_report

        found = ensure_report(settings.workspace(), audit_id)
    return audits_printing.show_report(found, as_json=as_json)


def _serve(settings: Settings, port: int) -> None:
    from urllib.parse import urlsplit

    from gradtrail.reports.index.serving import HOST, report_server
    from gradtrail.tasks.report.index_pages import write_report_index

    workspace = settings.workspace()
    write_report_index(workspace)
    public = urlsplit(workspace.report_url).hostname
    with report_server(workspace.reports, port, [public] if public else []) as server:
        typer.echo(f"Reports: http://{HOST}:{server.server_port}/ (stop with Ctrl-C)")
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            typer.echo("Stopped.")
