"""The flow `calibrate`: how far each method can be trusted on one checkpoint, measured."""

from __future__ import annotations

from dataclasses import dataclass

from prefect import flow

from gradtrail.tasks.announcing import announce
from gradtrail.tasks.calibrate.figures import MethodFidelity
from gradtrail.tasks.calibrate.plans import CalibrateOptions, CalibrationPlan
from gradtrail.tasks.calibrate.queries import query_roles
from gradtrail.tasks.calibrating import measure_fidelity, plan_calibration, refuse_calibration, train_further
from gradtrail.tasks.collecting import collect_outputs
from gradtrail.tasks.core.workspace import Workspace
from gradtrail.tasks.indexing import publish_snapshot
from gradtrail.tasks.ingesting import resolve_version


@dataclass(frozen=True)
class CalibrateOutcome:
    """What a calibration measured.

    Attributes:
        model_version_id: the pinned version.
        plan: what was trained, towards which queries.
        trained: runs of further training that this call made; an earlier one may have made the others.
        methods: every method and weighting with its figures, on queries that nothing was fitted or chosen on.
        refused: record ids that this run refused when it looked into the inbox, with the cause.
        not_fitted_because: why no weights were fitted; empty when they were.
    """

    model_version_id: str
    plan: CalibrationPlan
    trained: int
    methods: tuple[MethodFidelity, ...]
    refused: tuple[tuple[str, str], ...] = ()
    not_fitted_because: str = ""


@flow(name="gradtrail-calibrate")
def calibrate(
    workspace: Workspace,
    reference: str,
    options: CalibrateOptions = CalibrateOptions(),  # noqa: B008 - frozen
) -> CalibrateOutcome:
    """Train the model further with and without random halves, compare methods and weightings, choose one for `auto`.

    Outputs in the inbox are collected first: they are what fidelity should speak about.
    A killed calibration resumes; one that is complete is compared again without any training.

    Args:
        workspace: where everything lives.
        reference: `NAME@alias`, `NAME/3` or `NAME`; an alias is resolved once and pinned by number.
        options: budget or counts, methods, weightings and how the model is trained further.
    """
    version = resolve_version(workspace, reference)
    refuse_calibration(workspace, version.model_version_id, options)
    collected = collect_outputs(workspace)
    plan = plan_calibration(workspace, version.model_version_id, options)
    trained = train_further(workspace, plan, options)
    methods = measure_fidelity(workspace, plan, options)
    publish_snapshot(workspace)
    announce(workspace)
    roles = query_roles(len(plan.query_ids), options.weightings, options.seed)
    return CalibrateOutcome(
        version.model_version_id, plan, trained, tuple(methods), collected.refused, roles.not_fitted_because
    )
