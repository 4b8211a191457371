"""The demo, and a check of this installation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import typer
from rich.markup import escape
from rich.table import Table

from gradtrail import printing
from gradtrail.commands.options import AsJson, Home, load_settings
from gradtrail.errors import GradtrailError
from gradtrail.session import flow_session

if TYPE_CHECKING:
    from gradtrail.doctor import Examination

app = typer.Typer()
_MARKS = {"ok": "[green]ok[/]", "note": "[yellow]note[/]", "fault": "[red]fault[/]"}


@app.command()
def demo(home: Home = None) -> None:
    """Train, register, index and audit a small real model, end to end, under ./.gradtrail."""
    from gradtrail.demo.run import run_demo

    run_demo(load_settings(home=home))


@app.command()
def doctor(home: Home = None, as_json: AsJson = False) -> None:
    """Check this installation: versions that work together, folders, MLflow, Prefect, ledger."""
    settings = load_settings(home=home)
    with flow_session(settings.home):
        from gradtrail.doctor import examine

        findings = examine(settings)
    _show_doctor(findings, as_json=as_json)
    if any(finding.status == "fault" for finding in findings):
        raise typer.Exit(GradtrailError.exit_code)


def _show_doctor(examinations: Sequence[Examination], *, as_json: bool) -> None:
    """What the doctor found."""
    if as_json:
        return printing.print_json(examinations)
    table = Table("", "what", "found", box=None, pad_edge=False, show_header=False)
    for examination in examinations:
        table.add_row(_MARKS[examination.status], escape(examination.what), escape(examination.found))
    printing.console().print(table)
    return None
