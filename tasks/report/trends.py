"""The trend of a model: one MLflow run whose steps are the model's audits, so that MLflow draws figures over audits."""

from __future__ import annotations

from gradtrail.lineage.connections import recorded
from gradtrail.lineage.read import queries
from gradtrail.lineage.read.audit_history import numbered_audits
from gradtrail.storage.models.audit_runs import (
    annotate,
    log_point,
    logged_steps,
    markdown_text,
    open_index_run,
    open_trend_run,
)
from gradtrail.tasks.core.workspace import Workspace
from gradtrail.tasks.report.history import audit_history, audit_metrics, wrong_outputs

TREND_SHARE = 0.01
"""A source or licence with less of the support than this is not drawn at that step."""
WHOLE_STEP = "outputs"
"""The metric that is logged last."""


def record_trend(workspace: Workspace, audit_id: str) -> str:
    """Log a recorded audit, and earlier ones that are missing, as steps of its model's trend; returns the run id.

    The step is the number of the audit among those of its model, and the time is when it was recorded. Repeating it
    changes nothing.
    """
    with workspace.ledger().read() as connection:
        audit = recorded(queries.audit(connection, audit_id), audit_id)
        model = audit.model_version_id.rpartition("/")[0]
        numbered = numbered_audits(connection, model)
    registry, links = workspace.registry(), workspace.links()
    run = open_trend_run(registry, model)
    logged = logged_steps(registry, run, WHOLE_STEP)
    missing = [each.audit_id for each in numbered if each.number not in logged]
    with workspace.ledger().read() as connection:
        history = audit_history(connection, model, missing)
    for each in history:
        past = each.past
        figures = audit_metrics(each, wrong_outputs(workspace, past.audit_id), TREND_SHARE)
        log_point(registry, run, figures, past.number, past.recorded_at)
    index = open_index_run(registry)
    annotate(
        registry,
        run,
        f"## Trend of {markdown_text(model)}\n\n"
        f"Each step is an audit, in the order of the ledger. [Charts]({links.metrics(run)}) · "
        f"[model]({links.model(model)}) · [all audits]({links.index(index)})",
    )
    return run.run_id
