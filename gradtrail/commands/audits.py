"""Audit outputs, and read what audits found."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from gradtrail.commands import audits_printing, outputs
from gradtrail.commands import options as shared
from gradtrail.commands.options import AsJson, Home, Reference, load_settings
from gradtrail.session import flow_session

app = typer.Typer()
app.add_typer(outputs.app, name="outputs")


@app.command()
def audit(
    reference: Reference,
    method: shared.Method = "auto",
    target: shared.AuditTarget = "emitted",
    top_k: shared.TopK = 10,
    curvature: shared.Curvature = "",
    relative_damping: shared.RelativeDamping = 1.0,
    absolute_damping: shared.AbsoluteDamping = 0.0,
    horizon: shared.Horizon = "",
    weighting: shared.AuditWeighting = "auto",
    index: shared.AuditIndex = "",
    every_checkpoint: shared.EveryCheckpoint = False,
    policy: shared.PolicyFile = None,
    retry_refused: Annotated[
        bool,
        typer.Option("--retry-refused", help="Take outputs, too, that could not be measured before."),
    ] = False,
    fail_on: Annotated[
        Literal["high", "medium", "low"] | None,
        typer.Option(help="Exit with code 4 where a finding is of this severity or higher.", show_default=False),
    ] = None,
    most_unjudged: Annotated[
        float,
        typer.Option(
            "--most-unjudged",
            "--most-refused",
            help="With --fail-on or --junit: share of the outputs that may be left without an audit.",
            min=0,
            max=1,
        ),
    ] = 0.0,
    least_outputs: Annotated[
        int, typer.Option(help="With --fail-on or --junit: outputs that have to be audited at least.", min=0)
    ] = 0,
    junit: Annotated[
        Path | None,
        typer.Option(help="Write rules and findings as JUnit XML, and as JSON beside it.", show_default=False),
    ] = None,
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """Audit every output that no audit has covered yet, and write the report."""
    settings = load_settings(home=home, policy=policy)
    with flow_session(settings.home):
        from gradtrail.flows.audit import audit as audit_flow

        options = shared.audit_options(
            method=method,
            target=target,
            top_k=top_k,
            curvature=curvature,
            relative_damping=relative_damping,
            absolute_damping=absolute_damping,
            horizon=horizon,
            weighting=weighting,
            index=index,
            every_checkpoint=every_checkpoint,
        )
        outcome = audit_flow(settings.workspace(), reference, options, retry_refused=retry_refused)
    audits_printing.show_audit(outcome, as_json=as_json)
    if fail_on or junit:
        from gradtrail.tasks.govern.verdicts import judge_run, require_pass, write_verdicts

        verdict = judge_run(settings.workspace(), outcome, target, most_unjudged, least_outputs)
        if junit:
            write_verdicts(verdict, fail_on or "high", junit)
        if fail_on:
            require_pass(verdict.audits, fail_on, verdict.fault)


@app.command()
def explain(
    output: Annotated[str, typer.Argument(help="Output id, or the beginning of one.")],
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """Say where one output came from: examples, sources, licences, dataset version, run, checkpoint."""
    from gradtrail.api import connect

    audits_printing.show_explanation(connect(load_settings(home=home).home).explain(output), as_json=as_json)
