"""Calibrate: how far methods can be trusted on a model version, with which weights; and the weights it learned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.markup import escape
from rich.table import Table

from gradtrail import printing
from gradtrail.commands.options import AsJson, Home, Reference, load_settings
from gradtrail.digests import short
from gradtrail.session import flow_session

if TYPE_CHECKING:
    from gradtrail.attribution.fidelity.evaluation import FidelityFigure
    from gradtrail.flows.calibrate import CalibrateOutcome
    from gradtrail.nouns import Weighting
    from gradtrail.tasks.calibrate.figures import MethodFidelity


def calibrate(
    reference: Reference,
    budget: Annotated[str, typer.Option(help="Time it may take: 90s, 5m, 2h.")] = "5m",
    method: Annotated[
        list[str] | None, typer.Option(help="Method to measure, repeatable; default: those at no extra index cost.")
    ] = None,
    target: Annotated[Literal["emitted", "label"], typer.Option(help="As in an audit.")] = "emitted",
    steps: Annotated[
        str, typer.Option(help="Amounts of further training: the shortest is the horizon now, the longest training.")
    ] = "10,50,200",
    halves: Annotated[
        int, typer.Option(help="Random halves to leave out; with --seeds, instead of a budget.", show_default=False)
    ] = 0,
    seeds: Annotated[
        int, typer.Option(help="Orders of the data to average over; with --halves.", show_default=False)
    ] = 0,
    leave_one_out: Annotated[
        int, typer.Option(help="Single examples to leave out too, for fidelity_loo.", show_default=False, min=0)
    ] = 0,
    learn_weights: Annotated[
        bool, typer.Option("--learn-weights/--uniform-weights", help="Learn weights of groups of parameters.")
    ] = True,
    level: Annotated[Literal["layer", "kind", "block"], typer.Option(help="What has a weight of its own.")] = "layer",
    aspect: Annotated[
        list[str] | None,
        typer.Option(help="Attribute of the training data to learn a weighting for, repeatable.", show_default=False),
    ] = None,
    index: Annotated[
        str,
        typer.Option(help="Index to calibrate, by the beginning of its id; else the newest.", show_default=False),
    ] = "",
    every_checkpoint: Annotated[
        bool,
        typer.Option("--every-checkpoint", help="Measure methods on all checkpoints together too, where they add up."),
    ] = False,
    optimiser: Annotated[
        Literal["sgd", "adam", "adamw"] | None,
        typer.Option(help="Of the further training; else what the training run logged, or sgd.", show_default=False),
    ] = None,
    learning_rate: Annotated[
        float | None,
        typer.Option(help="Of the further training; else what the run logged, or searched for.", show_default=False),
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Examples a step; 64, or all where there are fewer.", show_default=False)
    ] = None,
    seed: Annotated[int, typer.Option(help="Of all that is drawn.", min=0)] = 0,
    device: Annotated[str, typer.Option(help="Where the model is trained: cpu, cuda, mps.")] = "cpu",
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """Measure how far each method can be trusted on this very checkpoint; method auto then takes the best."""
    from gradtrail.amounts import seconds_of, whole_numbers_of

    seconds, amounts = seconds_of(budget), whole_numbers_of(steps)
    from gradtrail.tasks.calibrate.plans import LEARNED_OBJECTIVES, CalibrateOptions

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
        sets=halves,
        seeds=seeds,
        leave_one_out=leave_one_out,
        index=index,
        weightings=LEARNED_OBJECTIVES if learn_weights else (),
        level=level,
        aspects=tuple(aspect or ()),
        every_checkpoint=every_checkpoint,
    )
    settings = load_settings(home=home)
    with flow_session(settings.home):
        from gradtrail.flows.calibrate import calibrate as calibrate_flow

        outcome = calibrate_flow(settings.workspace(), reference, options)
    show_calibration(outcome, as_json=as_json)


def weightings(home: Home = None, as_json: AsJson = False) -> None:
    """List the weightings of parameter groups that calibrations learned, with their evidence."""
    from gradtrail.lineage.read import listings

    with load_settings(home=home).workspace().ledger().read() as connection:
        found = [each for each in listings.weightings(connection) if each.group_weights]
    show_weightings(found, as_json=as_json)


def show_calibration(outcome: CalibrateOutcome, *, as_json: bool) -> None:
    """Fidelity of every method and weighting by amount of further training."""
    if as_json:
        return printing.say_or_json(outcome, "", as_json=True)
    out = printing.console()
    for record_id, cause in outcome.refused:
        out.print(escape(f"Refused output {record_id}: {cause}"), soft_wrap=True)
    count = outcome.methods[0].by_steps[0].queries
    out.print(
        f"Fidelity on {escape(outcome.model_version_id)}: rank correlation of predicted and measured effects of "
        f"leaving out random halves, over {count} {outcome.plan.query_source} that nothing was chosen or fitted on.",
        soft_wrap=True,
    )
    out.print(_figures(outcome, {id(each): each.by_steps for each in outcome.methods}))
    if outcome.methods[0].singles_by_steps:
        out.print("The same for leaving out single examples, a figure of its own (fidelity_loo):")
        out.print(_figures(outcome, {id(each): each.singles_by_steps for each in outcome.methods}))
    if outcome.not_fitted_because:
        out.print(escape(outcome.not_fitted_because), soft_wrap=True)
    longest = outcome.methods[0].by_steps[-1].noise_ceiling
    if any(each.chosen for each in outcome.methods):
        return out.print("Method auto now takes the one marked auto; --horizon now and --horizon training name others.")
    would = longest.seeds_that_would_do
    counts = f"--halves {outcome.plan.sets} --seeds {would}"
    remedy = f"About {would} seeds would do, where {longest.seeds} were trained: {counts}."
    if would is None:
        remedy = "Train for longer or at a larger rate (--steps, --learning-rate), so that leaving data out does more."
    return out.print(
        "Fidelity could not be measured: the ceiling cannot be told from zero, or lies below what it should bound. "
        f"Method auto keeps to its default. {remedy}",
        soft_wrap=True,
    )


def show_weightings(found: Sequence[Weighting], *, as_json: bool) -> None:
    """Learned weightings, the oldest first."""
    if as_json:
        listed = [
            {
                "weighting_id": each.weighting_id,
                "objective": each.objective,
                "group_weights": each.group_weights,
                "evidence": each.evidence,
            }
            for each in found
        ]
        return printing.say_or_json(listed, "", as_json=True)
    out = printing.console()
    if not found:
        return out.print("No weighting was learned yet. Learn some: gradtrail calibrate NAME.")
    table = Table("id", "objective", "method", "effective groups", "gain", "model", box=None, pad_edge=False)
    for each in found:
        said = each.evidence
        method = f"{said.get('method', '')} {_tuned(said.get('parameters', {}))}".strip()
        groups = f"{said['effective_groups']:.1f} of {len(each.group_weights)}" if "effective_groups" in said else ""
        gain = f"{said['held_out_gain']:+.3f} after {said['further_steps']} steps" if "held_out_gain" in said else ""
        model = str(said.get("model_version_id", ""))
        table.add_row(short(each.weighting_id), *map(escape, (each.objective, method, groups, gain, model)))
    out.print(table)
    return out.print(
        "Gain: fidelity on queries that nothing was fitted or chosen on, minus that of uniform weights.", soft_wrap=True
    )


def _figures(outcome: CalibrateOutcome, figures: Mapping[int, Sequence[FidelityFigure]]) -> Table:
    """One row a method and weighting, the best after the longest training first."""
    steps = [f"{figure.steps} steps" for figure in figures[id(outcome.methods[0])]]
    table = Table("best for", "method", "weights", *steps, box=None, pad_edge=False)
    for each in sorted(outcome.methods, key=lambda one: -figures[id(one)][-1].spearman):
        values = (f"{figure.spearman:.3f} ± {figure.spearman_error:.3f}" for figure in figures[id(each)])
        joined = f"{len(each.index_ids)} checkpoints" if len(each.index_ids) > 1 else ""
        named = escape(f"{each.method} {', '.join(filter(None, (joined, _tuned(each.parameters))))}".strip())
        table.add_row(f"[bold]{_best_for(outcome, each)}[/]", named, escape(each.weighting.objective), *values)
    ceilings = (f"{figure.spearman_ceiling:.3f}" for figure in figures[id(outcome.methods[0])])
    table.add_row("", "[dim]ceiling: what noise leaves within reach[/]", "", *ceilings)
    return table


def _best_for(outcome: CalibrateOutcome, measured: MethodFidelity) -> str:
    names = ["auto"] if measured.chosen else []
    names += [
        question
        for steps, scopes in measured.best_of.items()
        if "all" in scopes and (question := outcome.plan.question_of(steps))
    ]
    return ", ".join(names)


def _tuned(parameters: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{name.replace('_', ' ')} {value}"
        for name, value in parameters.items()
        if value not in (0.0, "") and not isinstance(value, list)
    )
