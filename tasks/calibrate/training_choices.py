"""How a calibration trains further: optimiser and rate as given, as the training run logged them, or searched for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from gradtrail.attribution.fidelity.rate_search import MOST_UP, RateSearch, TriedRate, search_rate
from gradtrail.digests import canonical_json, sha256_json
from gradtrail.errors import ModelError
from gradtrail.storage.files.atomic import write_atomically
from gradtrail.tasks.calibrate.logged_training import LoggedTraining, Optimiser, logged_training
from gradtrail.tasks.calibrate.plans import CalibrateOptions, said_of_run
from gradtrail.tasks.calibrate.queries import QuerySet
from gradtrail.tasks.calibrate.runs import training_towards, using_threads
from gradtrail.tasks.core.ledger_nouns import recorded_run
from gradtrail.tasks.core.models import PinnedModel
from gradtrail.tasks.core.workspace import Workspace
from gradtrail.tasks.index.opened import OpenIndex

Origin = Literal["given", "logged", "default"]

STARTING_RATES: Mapping[Optimiser, float] = {"sgd": 0.02, "adam": 0.001, "adamw": 0.001}
"""Where the search begins when nobody says a rate."""


@dataclass(frozen=True)
class TrainingChoice:
    """Optimiser and the rate to begin with, where they come from, and what the run logged of them."""

    optimiser: Optimiser
    learning_rate: float
    optimiser_from: Origin
    rate_from: Origin
    logged: Mapping[str, str]


@dataclass(frozen=True)
class ChosenTraining:
    """The options with optimiser, rate and batch size filled in.

    Attributes:
        options: nothing in them is left open.
        evidence: where optimiser and rate come from and what was tried, for the ledger; empty where both were given.
        slower: rates to fall back to where longer training diverges, the best first.
    """

    options: CalibrateOptions
    evidence: Mapping[str, Any]
    slower: tuple[float, ...] = ()

    def at(self, learning_rate: float) -> ChosenTraining:
        """The same at one of the slower rates."""
        diverged = [*self.evidence.get("diverged_later", ()), self.options.learning_rate]
        return ChosenTraining(
            replace(self.options, learning_rate=learning_rate),
            {**self.evidence, "diverged_later": diverged},
            tuple(each for each in self.slower if each < learning_rate),
        )


def training_choice(options: CalibrateOptions, logged: LoggedTraining) -> TrainingChoice:
    """What is given decides; then what was logged; a rate counts only for the optimiser that it was logged with."""
    if options.learning_rate is not None:
        optimiser: Optimiser = options.optimiser or "sgd"
        return TrainingChoice(optimiser, options.learning_rate, _given(options.optimiser), "given", {})
    known = logged.optimiser or "sgd"
    optimiser = options.optimiser or known
    rate = logged.learning_rate if optimiser == known else None
    origin: Origin = "logged" if logged.optimiser else "default"
    return TrainingChoice(
        optimiser,
        rate or STARTING_RATES[optimiser],
        "given" if options.optimiser else origin,
        "logged" if rate else "default",
        logged.said,
    )


def chosen_training(
    workspace: Workspace, pinned: PinnedModel, opened: OpenIndex, query_set: QuerySet, options: CalibrateOptions
) -> ChosenTraining:
    """Fill in optimiser, rate and batch size; a rate that was not given is tried out first, once.

    Raises:
        ModelError: when the loss is not finite at any rate that was tried.
    """
    with workspace.ledger().read() as connection:
        run = recorded_run(connection, pinned.model_version.run_id)
    options = options.with_batches(len(opened.examples(pinned)))
    choice = training_choice(options, logged_training(run.parameters))
    options = replace(options, optimiser=choice.optimiser, learning_rate=choice.learning_rate)
    if choice.rate_from == "given":
        return ChosenTraining(options, {})
    found = _searched(workspace, pinned, opened, query_set, options, choice)
    if not found.usable:
        rates = ", ".join(f"{each.learning_rate:g}" for each in found.tried)
        raise ModelError(
            f"Further training of {pinned.model_version.model_version_id} by {choice.optimiser} diverges within "
            f"{found.steps} steps at every rate that was tried: {rates}.",
            "Give another one with --learning-rate, or another --optimiser.",
        )
    rate, *slower = found.usable
    evidence = {
        "optimiser_from": choice.optimiser_from,
        "rate_from": choice.rate_from,
        "logged": dict(choice.logged),
        "rate_search": asdict(found) | {"falls": bool(found.falling)},
    }
    down = (each for each in slower if each < rate)
    return ChosenTraining(replace(options, learning_rate=rate), evidence, tuple(sorted(down, reverse=True)))


def in_words(chosen: ChosenTraining) -> str:
    """What was tried, as one line; empty where nothing was."""
    said = chosen.evidence
    if not said:
        return ""
    search, options = said["rate_search"], chosen.options
    tried = ", ".join(f"{each['learning_rate']:g} {_loss(each['loss_after'])}" for each in search["tried"])
    logged = ", ".join(f"{name}={value}" for name, value in said["logged"].items())
    later = "".join(f"; at {rate:g} longer training diverges" for rate in said.get("diverged_later", ()))
    return (
        f"Further training by {str(options.optimiser).upper()} at {options.learning_rate:g}"
        f"{f' (the run logged {logged})' if logged else ''}: mean training loss {search['loss_before']:.4g}, after "
        f"{search['steps']} steps at {tried}{later}."
    )


def _loss(loss: float | None) -> str:
    return "not finite" if loss is None else f"{loss:.4g}"


def _given(optimiser: Optimiser | None) -> Origin:
    return "given" if optimiser else "default"


def _searched(
    workspace: Workspace,
    pinned: PinnedModel,
    opened: OpenIndex,
    query_set: QuerySet,
    options: CalibrateOptions,
    choice: TrainingChoice,
) -> RateSearch:
    """The search from the choice's rate; kept, so that a killed calibration goes on at the rate that it had."""
    most_up = 0 if choice.rate_from == "logged" else MOST_UP
    key = said_of_run(options) | {"index": opened.index.index_id, "most_up": most_up, "steps": options.steps[0]}
    path = workspace.root / "calibrations" / f"rate-{sha256_json(key)}.json"
    if path.is_file():
        said = json.loads(path.read_bytes())
        tried = tuple(TriedRate(float(each["learning_rate"]), each["loss_after"]) for each in said["tried"])
        return RateSearch(said["steps"], said["examples"], said["loss_before"], tried)
    with using_threads(options.training_threads[-1]):
        found = search_rate(
            lambda rate: training_towards(
                pinned, opened, query_set, replace(options, learning_rate=rate), options.steps[:1]
            ),
            choice.learning_rate,
            seed=options.seed,
            most_up=most_up,
        )
    write_atomically(path, canonical_json(asdict(found)))
    return found
