"""The command line: each command reads settings, calls one flow or query, and prints; `--json` prints for scripts."""

from __future__ import annotations

import os
import sys
import traceback
from typing import Annotated, NoReturn

import typer

from gradtrail import printing
from gradtrail.commands import audits, exporting, installation, ledger, models, reports, running, trust
from gradtrail.errors import GradtrailError
from gradtrail.session import quiet_libraries

_TRACEBACK = "GRADTRAIL_TRACEBACK"

app = typer.Typer(
    name="gradtrail",
    help="Which training data made this output, under which licence, and how far can that answer be trusted.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
for room, panel in (
    (installation, "Begin"),
    (models, "Models"),
    (audits, "Audits"),
    (reports, "Audits"),
    (running, "On a schedule"),
    (ledger, "Ledger"),
    (trust, "Ledger"),
    (exporting, "Ledger"),
):
    for command in (*room.app.registered_commands, *room.app.registered_groups):
        command.rich_help_panel = panel
    app.add_typer(room.app)


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.", is_eager=True)] = False,
) -> None:
    if version:
        from gradtrail import __version__

        typer.echo(f"gradtrail {__version__}")
        raise typer.Exit


def main() -> None:
    """Entry point: expected errors become two calm lines and an exit code."""
    quiet_libraries()
    printing.calm_warnings()
    try:
        app(standalone_mode=True)
    except GradtrailError as error:
        _end(error)
    except Exception as fault:
        told = _adapter_fault(fault)
        if told is None:
            raise
        _end(told)


def _end(error: GradtrailError) -> NoReturn:
    printing.show_error(error)
    if os.environ.get(_TRACEBACK):
        traceback.print_exception(error)
    sys.exit(error.exit_code)


def _adapter_fault(fault: Exception) -> GradtrailError | None:
    """What an adapter's own code has raised, in words; where no adapter was loaded, torch is not loaded for it."""
    faults = sys.modules.get("gradtrail.attribution.adapters.faults")
    told: GradtrailError | None = faults.adapter_fault(fault) if faults is not None else None
    if told is not None:
        told.__cause__ = fault
    return told


if __name__ == "__main__":
    main()
