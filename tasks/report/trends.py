"""The trend of a model: one MLflow run whose steps are the model's audits, so that MLflow draws figures over audits."""

from __future__ import annotations

from gradtrail.lineage.read.audit_history import numbered_audits
from gradtrail.storage.models.audit_runs import (
    annotate,
    log_point,
    logged_steps,
    markdown_text,
)
from gradtrail.tasks.report.history import audit_history, audit_metrics, wrong_outputs
from gradtrail.tasks.report.reported_audits import ShownAudit

TREND_SHARE = 0.01
"""A source or licence with less of the support than this is not drawn at that step."""
WHOLE_STEP = "outputs"
"""The metric that is logged last."""


def record_trend(shown: ShownAudit) -> str:
    """Log a recorded audit, and earlier ones that are missing, as steps of its model's trend; returns the run id.

    The step is the number of the audit among those of its model, and the time is when it was recorded. Repeating it
    changes nothing.
    """
    workspace, registry, links = shown.workspace, shown.registry, shown.workspace.links()
    run, model = shown.recorded.trend_run, shown.recorded.details.model_version.name
    logged = logged_steps(registry, run, WHOLE_STEP)
    with workspace.ledger().read() as connection:
        missing = [each.audit_id for each in numbered_audits(connection, model) if each.number not in logged]
        history = audit_history(connection, model, missing)
    for each in history:
        past = each.past
        figures = audit_metrics(each, wrong_outputs(workspace, past.audit_id), TREND_SHARE)
        log_point(registry, run, figures, past.number, past.recorded_at)
    annotate(
        registry,
        run,
        f"## Trend of {markdown_text(model)}\n\n"
        f"Each step is an audit, in the order of the ledger. [Charts]({links.metrics(run)}) · "
        f"[model]({links.model(model)}) · [all audits]({links.index(shown.recorded.index_run)})",
    )
    return run.run_id
