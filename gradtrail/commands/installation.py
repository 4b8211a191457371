"""The demo, and a check of this installation."""

from __future__ import annotations

import typer

from gradtrail import printing
from gradtrail.commands.options import AsJson, Home
from gradtrail.errors import GradtrailError
from gradtrail.session import flow_session
from gradtrail.settings import load_settings

app = typer.Typer()


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
    printing.show_doctor(findings, as_json=as_json)
    if any(finding.status == "fault" for finding in findings):
        raise typer.Exit(GradtrailError.exit_code)
