"""Register, ingest and index model versions, and measure how far methods can be trusted on them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from gradtrail.commands import models_printing
from gradtrail.commands.calibration import calibrate, weightings
from gradtrail.commands.options import AsJson, Home, Reference, load_settings, method_spec
from gradtrail.session import flow_session

app = typer.Typer()


@app.command()
def register(
    weights: Annotated[Path, typer.Argument(help="File of weights, or folder that a training left.")],
    adapter: Annotated[str, typer.Option(help="module:Class; naming it here allows it to run.")],
    name: Annotated[str, typer.Option(help="Name of the registered model.")],
    alias: Annotated[str, typer.Option(help="Alias to move to the new version.")] = "",
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """Register weights that lie on disk as the next version of a model."""
    from gradtrail.registration import register_file

    version = register_file(weights, adapter=adapter, name=name, alias=alias, settings=load_settings(home=home))
    models_printing.show_registered(version, alias, as_json=as_json)


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
    models_printing.show_ingest(outcome, as_json=as_json)


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
    weighting: Annotated[
        str,
        typer.Option(help="Store vectors under a learned weighting: the beginning of its id.", show_default=False),
    ] = "",
    shard: Annotated[
        str, typer.Option(help="k/n: only every n-th example, for one of n workers; then run once without it.")
    ] = "1/1",
    workers: Annotated[
        int, typer.Option(help="Processes that share the measuring, with a part of the cores each.", min=1)
    ] = 1,
    device: Annotated[str, typer.Option(help="Where the pass runs: cpu, cuda, mps.")] = "cpu",
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """Measure and store a projected gradient for every training example. Resumes where a killed pass stopped."""
    settings = load_settings(home=home)
    with flow_session(settings.home):
        from gradtrail.flows.index import index as index_flow
        from gradtrail.tasks.index.options import IndexOptions

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
            weighting=weighting,
            workers=workers,
        )
        outcomes = index_flow(settings.workspace(), reference, options, every_checkpoint)
    models_printing.show_index(outcomes, as_json=as_json)


app.command()(calibrate)
app.command()(weightings)


@app.command()
def methods(as_json: AsJson = False) -> None:
    """List the attribution methods: what each does, needs and costs, and where it comes from."""
    from gradtrail.attribution.methods.rules import METHODS

    models_printing.show_methods(list(METHODS.values()), as_json=as_json)


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
        from gradtrail.tasks.audit.self_influences import write_self_influence

        spec = method_spec(
            method=method,
            curvature=curvature,
            relative_damping=relative_damping,
            absolute_damping=absolute_damping,
        )
        found = write_self_influence(settings.workspace(), reference, spec, top)
    models_printing.show_self_influence(found, as_json=as_json)
