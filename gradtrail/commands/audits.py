"""Audit outputs, and read what audits found."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from gradtrail.commands import audits_printing, outputs
from gradtrail.commands.options import AsJson, Home, Reference
from gradtrail.session import flow_session
from gradtrail.settings import load_settings

app = typer.Typer()
app.add_typer(outputs.app, name="outputs")


@app.command()
def audit(
    reference: Reference,
    method: Annotated[
        str, typer.Option(help="See `gradtrail methods`; auto: what calibrate found best, else influence.")
    ] = "auto",
    target: Annotated[
        Literal["emitted", "label"], typer.Option(help="Why it said this, or why it was wrong.")
    ] = "emitted",
    top_k: Annotated[int, typer.Option(help="Proponents and opponents kept per output.", min=1)] = 10,
    curvature: Annotated[str, typer.Option(help="empirical, fisher or ggn; ggn or hessian for cg and lissa.")] = "",
    relative_damping: Annotated[float, typer.Option(help="Multiple of the mean curvature added to it.", min=0)] = 1.0,
    absolute_damping: Annotated[float, typer.Option(help="For example the ridge of the objective.", min=0)] = 0.0,
    horizon: Annotated[
        str,
        typer.Option(
            help="now (how sensitive is the model?) or training (what shaped it?) as calibrated; or a number, learning "
            "rate × steps, for methods horizon and unrolled.",
            show_default=False,
        ),
    ] = "",
    weighting: Annotated[
        str, typer.Option(help="auto, uniform, aspect:ATTRIBUTE, or the beginning of a weighting's id.")
    ] = "auto",
    index: Annotated[
        str,
        typer.Option(help="Index to score, by the beginning of its id; else the calibrated one.", show_default=False),
    ] = "",
    every_checkpoint: Annotated[
        bool,
        typer.Option("--every-checkpoint", help="Score with all checkpoints together (trak, methods with curvature)."),
    ] = False,
    policy: Annotated[Path | None, typer.Option(help="Policy file.", show_default=False)] = None,
    fail_on: Annotated[
        Literal["high", "medium", "low"] | None,
        typer.Option(help="Exit with code 4 where a finding is of this severity or higher.", show_default=False),
    ] = None,
    junit: Annotated[
        Path | None,
        typer.Option(help="Write rules and findings as JUnit XML, and as JSON beside it.", show_default=False),
    ] = None,
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """Audit every output that no audit has covered yet, and write the report."""
    from gradtrail.amounts import horizon_of

    tau, named_horizon = horizon_of(horizon)
    settings = load_settings(home=home, policy=policy)
    with flow_session(settings.home):
        from gradtrail.flows.audit import audit as audit_flow
        from gradtrail.tasks.audit_options import AuditOptions

        options = AuditOptions(
            method,
            target,
            top_k,
            curvature,
            relative_damping,
            absolute_damping,
            horizon=tau,
            every_checkpoint=every_checkpoint,
            named_horizon=named_horizon,
            weighting=weighting,
            index=index,
        )
        outcome = audit_flow(settings.workspace(), reference, options)
    audits_printing.show_audit(outcome, as_json=as_json)
    if fail_on or junit:
        from gradtrail.tasks.gating import gated_audits, require_gate, write_gate

        audits = gated_audits(settings.workspace(), outcome.model_version_id, outcome.made)
        if junit:
            write_gate(audits, fail_on or "high", junit)
        if fail_on:
            require_gate(audits, fail_on)


@app.command()
def explain(
    output: Annotated[str, typer.Argument(help="Output id, or the beginning of one.")],
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """Say where one output came from: examples, sources, licences, dataset version, run, checkpoint."""
    from gradtrail.api import connect

    audits_printing.show_explanation(connect(load_settings(home=home).home).explain(output), as_json=as_json)
