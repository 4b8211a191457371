"""The flow `watch`: new versions of watched models are ingested, indexed and calibrated, each once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from prefect import flow

from gradtrail.errors import GradtrailError, said
from gradtrail.flows.calibrate import calibrate
from gradtrail.flows.index import index
from gradtrail.flows.ingest import ingest
from gradtrail.tasks.calibrate.plans import calibrate_options
from gradtrail.tasks.core.watched import WatchedModel
from gradtrail.tasks.core.workspace import Workspace
from gradtrail.tasks.ingest.preparations import Preparation
from gradtrail.tasks.watching import note_failure, note_success, unprepared


@dataclass(frozen=True)
class WatchOutcome:
    """What a look at the registry brought: versions made ready, and what failed with its cause."""

    prepared: tuple[str, ...] = ()
    failed: tuple[tuple[str, str], ...] = ()


class PreparationError(GradtrailError):
    """Something could not be made ready, so that the run counts as failed; `outcome` has what could."""

    def __init__(self, outcome: WatchOutcome) -> None:
        causes = " ".join(f"{name}: {cause}" for name, cause in outcome.failed)
        super().__init__(f"Not ready: {causes}", "All else is ready. The next looks try again, after a growing pause.")
        self.outcome = outcome


@flow(name="gradtrail-watch")
def watch(workspace: Workspace, models: Sequence[WatchedModel]) -> WatchOutcome:
    """Ask the registry what is new and prepare it; a repeat finds nothing to do.

    What fails is noted with its cause and tried again later; it stops neither the other versions nor the other models.

    Args:
        workspace: where everything lives.
        models: the models to look after.

    Raises:
        PreparationError: at the end, where something failed.
    """
    prepared, failed = [], []
    for model in models:
        try:
            lacking = unprepared(workspace, model)
        except Exception as fault:
            failed.append((model.reference, said(fault)))
            continue
        for each in lacking:
            try:
                _prepare(workspace, model, each)
            except Exception as fault:
                note_failure(workspace, each.model_version_id, said(fault))
                failed.append((each.model_version_id, said(fault)))
            else:
                note_success(workspace, each.model_version_id)
                prepared.append(each.model_version_id)
    outcome = WatchOutcome(tuple(prepared), tuple(failed))
    if failed:
        raise PreparationError(outcome)
    return outcome


def _prepare(workspace: Workspace, model: WatchedModel, lacks: Preparation) -> None:
    if lacks.ingest:
        ingest(workspace, lacks.model_version_id, model.adapter)
    if lacks.index:
        index(workspace, lacks.model_version_id)
    if lacks.calibrate:
        calibrate(workspace, lacks.model_version_id, calibrate_options(model))
