"""Look after models on a schedule."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from gradtrail import printing
from gradtrail.commands import audits_printing, options
from gradtrail.commands.options import AsJson, Home, Reference, load_settings
from gradtrail.errors import UsageError
from gradtrail.session import flow_session

if TYPE_CHECKING:
    from gradtrail.flows.watch import WatchOutcome

app = typer.Typer()


@app.command()
def serve(
    limit: Annotated[int, typer.Option(help="Flow runs at one time.", min=1)] = 2,
    home: Home = None,
) -> None:
    """Watch the models of gradtrail.toml and audit them on schedule, in this one process, until it is stopped."""
    from gradtrail.serving import deployments
    from gradtrail.serving import serve as serve_models

    settings = load_settings(home=home)
    for each in deployments(settings):
        when = f"cron {each.cron} ({each.time_zone})" if each.cron else f"every {each.interval_seconds} s"
        typer.echo(f"{each.name}: {when}")
    typer.echo("Serving; stop with Ctrl-C.")
    serve_models(settings, limit=limit)


@app.command()
def deployments(
    pool: Annotated[str, typer.Option(help="Work pool that runs them.")] = "gradtrail",
    home: Home = None,
) -> None:
    """Print the schedules of gradtrail.toml as a prefect.yaml, for workers of a Prefect work pool."""
    from gradtrail.serving import prefect_file

    typer.echo(prefect_file(load_settings(home=home), pool), nl=False)


@app.command()
def watch(home: Home = None, as_json: AsJson = False) -> None:
    """Look once for new versions of the models of gradtrail.toml: ingest, index and calibrate what is new."""
    settings = load_settings(home=home)
    if not settings.models:
        raise UsageError(
            "The settings name no model to look after.",
            'Add to gradtrail.toml: [[models]] and below it reference = "NAME@alias".',
        )
    with flow_session(settings.home):
        from gradtrail.flows.watch import PreparationError
        from gradtrail.flows.watch import watch as watch_flow

        try:
            outcome = watch_flow(settings.workspace(), settings.models)
        except PreparationError as fault:
            outcome = fault.outcome
    _show_watch(outcome, as_json=as_json)
    if outcome.failed:
        raise typer.Exit(1)


@app.command()
def reaudit(
    reference: Reference,
    audit: Annotated[
        str, typer.Option(help="Only the outputs of this audit, by id or its beginning.", show_default=False)
    ] = "",
    method: options.Method = "auto",
    target: options.AuditTarget = "emitted",
    top_k: options.TopK = 10,
    curvature: options.Curvature = "",
    relative_damping: options.RelativeDamping = 1.0,
    absolute_damping: options.AbsoluteDamping = 0.0,
    horizon: options.Horizon = "",
    weighting: options.AuditWeighting = "auto",
    index: options.AuditIndex = "",
    every_checkpoint: options.EveryCheckpoint = False,
    policy: options.PolicyFile = None,
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """Audit again what was audited before: after a withdrawal, by another method or under another policy."""
    settings = load_settings(home=home, policy=policy)
    with flow_session(settings.home):
        from gradtrail.api import connect
        from gradtrail.flows.reaudit import reaudit as reaudit_flow

        audit_id = connect(settings.home).resolve(audit, "audit") if audit else ""
        asked = options.audit_options(
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
        outcome = reaudit_flow(settings.workspace(), reference, asked, audit_id)
    audits_printing.show_audit(outcome, as_json=as_json)


def _show_watch(outcome: WatchOutcome, *, as_json: bool) -> None:
    """What a look at the registry brought."""
    if as_json:
        return printing.print_json(outcome)
    lines = [f"Ready: {name}." for name in outcome.prepared]
    lines += [f"Failed: {name}. {cause}" for name, cause in outcome.failed]
    return printing.say(*(lines or ["Nothing new: every watched version is ready."]))
