"""The command line: each command reads settings, calls one flow or query, and prints; `--json` prints for scripts."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from gradtrail import __version__, printing
from gradtrail.errors import GradtrailError, UsageError, VerificationError
from gradtrail.session import flow_session, quiet_libraries
from gradtrail.settings import load_settings

app = typer.Typer(
    name="gradtrail",
    help="Which training data made this output, under which licence, and how far can that answer be trusted.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
outputs_app = typer.Typer(help="Outputs of production models, waiting to be audited.", no_args_is_help=True)
app.add_typer(outputs_app, name="outputs")

Reference = Annotated[str, typer.Argument(help="Model version: NAME@alias, NAME/3, or NAME for the newest.")]
Home = Annotated[Path | None, typer.Option("--home", help="Home folder; default: ./.gradtrail.", show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.", is_eager=True)] = False,
) -> None:
    if version:
        typer.echo(f"gradtrail {__version__}")
        raise typer.Exit


@app.command()
def demo(home: Home = None) -> None:
    """Train, register, index and audit a small real model, end to end, under ./.gradtrail."""
    from gradtrail.demo.run import run_demo

    run_demo(load_settings(home=home))


@app.command()
def register(
    weights: Annotated[Path, typer.Argument(help="safetensors file, or a state_dict saved by torch.save.")],
    adapter: Annotated[str, typer.Option(help="module:Class; naming it here allows it to run.")],
    name: Annotated[str, typer.Option(help="Name of the registered model.")],
    alias: Annotated[str, typer.Option(help="Alias to move to the new version.")] = "",
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """Register weights that lie on disk as the next version of a model."""
    from gradtrail.registration import register_file

    version = register_file(weights, adapter=adapter, name=name, alias=alias, settings=load_settings(home=home))
    printing.show_registered(version, alias, as_json=as_json)


@app.command()
def ingest(
    reference: Reference,
    adapter: Annotated[str, typer.Option(help="module:Class; naming it here allows it to run.")] = "",
    allow_code_execution: Annotated[
        bool,
        typer.Option(
            "--allow-code-execution",
            help="Read pickled or exported models too. Loading them CAN EXECUTE CODE that the file carries.",
        ),
    ] = False,
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """Take a registered model version into the ledger: its weights, dataset version, run and adapter."""
    settings = load_settings(home=home)
    with flow_session(settings.home):
        from gradtrail.flows.ingest import ingest as ingest_flow

        outcome = ingest_flow(settings.workspace(), reference, adapter, allow_code_execution)
    printing.show_ingest(outcome, as_json=as_json)


@app.command()
def index(
    reference: Reference,
    group_dimension: Annotated[int, typer.Option(help="Numbers kept per parameter group and example.", min=4)] = 256,
    seed: Annotated[int, typer.Option(help="Seed of the random projection.", min=0)] = 0,
    every_checkpoint: Annotated[
        bool, typer.Option("--every-checkpoint", help="All checkpoints, not the last.")
    ] = False,
    projection: Annotated[
        Literal["random", "eigen"], typer.Option(help="Random, or the eigenbasis of the Kronecker factors (for ekfac).")
    ] = "random",
    dtype: Annotated[
        Literal["float32", "float16", "int8"], typer.Option(help="What the store keeps: 4, 2 or 1 bytes a number.")
    ] = "float32",
    total_dimension: Annotated[
        int | None, typer.Option(help="Numbers kept for all groups together, shared out by size.", show_default=False)
    ] = None,
    autocast: Annotated[
        Literal["none", "bfloat16"], typer.Option(help="Run the model in lower precision where torch does.")
    ] = "none",
    exclude: Annotated[
        list[str] | None, typer.Option(help="Layers to leave out, as a pattern; may be repeated.", show_default=False)
    ] = None,
    fallback: Annotated[
        bool, typer.Option("--fallback/--no-fallback", help="Measure parameters without a layer rule by autograd.")
    ] = True,
    fallback_for: Annotated[
        list[str] | None, typer.Option(help="Layers to measure by autograd; may be repeated.", show_default=False)
    ] = None,
    memory_budget: Annotated[
        int, typer.Option(help="Megabytes of the pass beside the model; batches are made to fit.", min=1)
    ] = 2000,
    shard: Annotated[
        str, typer.Option(help="k/n: only every n-th example, for one of n workers; then run once without it.")
    ] = "1/1",
    device: Annotated[str, typer.Option(help="Where the pass runs: cpu, cuda, mps.")] = "cpu",
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """Measure and store a projected gradient for every training example. Resumes where a killed pass stopped."""
    settings = load_settings(home=home)
    with flow_session(settings.home):
        from gradtrail.flows.index import index as index_flow
        from gradtrail.tasks.indexing import IndexOptions

        options = IndexOptions(
            group_dimension=group_dimension,
            seed=seed,
            device=device,
            projection=projection,
            dtype=dtype,
            total_dimension=total_dimension,
            autocast=autocast,
            exclude=tuple(exclude or ()),
            fallback=fallback,
            fallback_for=tuple(fallback_for or ()),
            memory_budget=memory_budget * 10**6,
            shard=shard,
        )
        outcomes = index_flow(settings.workspace(), reference, options, every_checkpoint)
    printing.show_index(outcomes, as_json=as_json)


@app.command()
def calibrate(
    reference: Reference,
    budget: Annotated[str, typer.Option(help="Time it may take: 90s, 5m, 2h.")] = "5m",
    method: Annotated[
        list[str] | None, typer.Option(help="Method to measure, repeatable; default: those at no extra index cost.")
    ] = None,
    target: Annotated[Literal["emitted", "label"], typer.Option(help="As in an audit.")] = "emitted",
    steps: Annotated[str, typer.Option(help="Amounts of further training; the longest decides.")] = "10,50,200",
    optimiser: Annotated[Literal["sgd", "adam", "adamw"], typer.Option(help="Of the further training.")] = "sgd",
    learning_rate: Annotated[float, typer.Option(help="Of the further training.")] = 0.02,
    batch_size: Annotated[int, typer.Option(help="Examples a step.", min=1)] = 64,
    seed: Annotated[int, typer.Option(help="Of all that is drawn.", min=0)] = 0,
    device: Annotated[str, typer.Option(help="Where the model is trained: cpu, cuda, mps.")] = "cpu",
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """Measure how far each method can be trusted on this very checkpoint; method auto then takes the best."""
    from gradtrail.amounts import seconds_of, whole_numbers_of

    seconds, amounts = seconds_of(budget), whole_numbers_of(steps)
    settings = load_settings(home=home)
    with flow_session(settings.home):
        from gradtrail.flows.calibrate import calibrate as calibrate_flow
        from gradtrail.tasks.calibration_plans import CalibrateOptions

        options = CalibrateOptions(
            seconds,
            tuple(method or ()),
            target,
            amounts,
            optimiser,
            learning_rate,
            batch_size,
            seed=seed,
            device=device,
        )
        outcome = calibrate_flow(settings.workspace(), reference, options)
    printing.show_calibration(outcome, as_json=as_json)


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
        float, typer.Option(help="Learning rate × steps, for method horizon; 0: one over the damping.", min=0)
    ] = 0.0,
    every_checkpoint: Annotated[
        bool, typer.Option("--every-checkpoint", help="An ensemble over all checkpoints, for method trak.")
    ] = False,
    policy: Annotated[Path | None, typer.Option(help="Policy file.", show_default=False)] = None,
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """Audit every output that no audit has covered yet, and write the report."""
    settings = load_settings(home=home, policy=policy)
    with flow_session(settings.home):
        from gradtrail.flows.audit import audit as audit_flow
        from gradtrail.tasks.auditing import AuditOptions

        options = AuditOptions(
            method,
            target,
            top_k,
            curvature,
            relative_damping,
            absolute_damping,
            horizon=horizon,
            every_checkpoint=every_checkpoint,
        )
        outcome = audit_flow(settings.workspace(), reference, options)
    printing.show_audit(outcome, as_json=as_json)


@outputs_app.command("add")
def outputs_add(
    file: Annotated[Path, typer.Argument(help="Parquet or JSON Lines, one record an output.")],
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """Put a file of outputs into the inbox; the next audit takes what is new in it."""
    from gradtrail.storage.outputs import add_file

    workspace = load_settings(home=home).workspace()
    placed = add_file(file, workspace.inbox)
    printing.show_added(placed, as_json=as_json)


@app.command()
def explain(
    output: Annotated[str, typer.Argument(help="Output id, or the beginning of one.")],
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """Say where one output came from: examples, sources, licences, dataset version, run, checkpoint."""
    from gradtrail.api import connect

    printing.show_explanation(connect(load_settings(home=home).home).explain(output), as_json=as_json)


@app.command()
def report(
    audit_id: Annotated[str, typer.Argument(help="Audit id, or the beginning of one; default: the newest.")] = "",
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """Find the report of an audit; write it again from the ledger if its file is gone."""
    settings = load_settings(home=home)
    with flow_session(settings.home):
        from gradtrail.tasks.reporting import ensure_report

        found = ensure_report(settings.workspace(), audit_id)
    printing.show_report(found, as_json=as_json)


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


@app.command()
def methods(as_json: AsJson = False) -> None:
    """List the attribution methods: what each does, needs and costs, and where it comes from."""
    from gradtrail.attribution.methods import METHODS

    printing.show_methods(list(METHODS.values()), as_json=as_json)


@app.command("self-influence")
def self_influence(
    reference: Reference,
    method: Annotated[str, typer.Option(help="Attribution method; `gradtrail methods` lists them.")] = "influence",
    top: Annotated[int, typer.Option(help="Examples to print.", min=1)] = 20,
    curvature: Annotated[str, typer.Option(help="empirical, fisher or ggn, for methods that need one.")] = "",
    relative_damping: Annotated[float, typer.Option(help="Multiple of the mean curvature added to it.", min=0)] = 1.0,
    absolute_damping: Annotated[float, typer.Option(help="For example the ridge of the objective.", min=0)] = 0.0,
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """Rank training examples by their influence on themselves: wrong labels stand at the top."""
    settings = load_settings(home=home)
    with flow_session(settings.home):
        from gradtrail.tasks.auditing import AuditOptions
        from gradtrail.tasks.self_influences import write_self_influence

        options = AuditOptions(
            method, curvature=curvature, relative_damping=relative_damping, absolute_damping=absolute_damping
        )
        found = write_self_influence(settings.workspace(), reference, options.method_options, top)
    printing.show_self_influence(found, as_json=as_json)


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


def main() -> None:
    """Entry point: expected errors become two calm lines and an exit code."""
    quiet_libraries()
    try:
        app(standalone_mode=True)
    except GradtrailError as error:
        printing.show_error(error)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
