"""The method that `auto` stands for: what the latest calibration found best."""

from __future__ import annotations

from dataclasses import fields, replace

from prefect import task
from prefect.cache_policies import NO_CACHE

from gradtrail.errors import UsageError
from gradtrail.lineage import queries
from gradtrail.nouns import Fidelity
from gradtrail.tasks.auditing import AUTO, DEFAULT_METHOD, AuditOptions
from gradtrail.tasks.opened import method_indexes
from gradtrail.tasks.recorded import recorded_model_version
from gradtrail.tasks.workspace import Workspace

_CHOSEN_BY_CALIBRATION = ("curvature", "relative_damping", "absolute_damping", "horizon")


@task(cache_policy=NO_CACHE)
def resolve_method(workspace: Workspace, model_version_id: str, options: AuditOptions) -> AuditOptions:
    """Method `auto` as the best of the latest calibration of the index at hand, else as the default method.

    Raises:
        UsageError: when options tune a method that the calibration chooses.
    """
    if options.method != AUTO:
        return options
    chosen = None
    with workspace.ledger().read() as connection:
        serving = recorded_model_version(connection, model_version_id).checkpoint_ids[-1]
        for found in queries.fidelities(connection, serving):
            if found.evidence.get("chosen") and found.evidence["target"] == options.target:
                chosen = found
                break
    if chosen is None or not _same_indexes(workspace, model_version_id, chosen):
        return replace(options, method=DEFAULT_METHOD)
    defaults = {each.name: each.default for each in fields(AuditOptions)}
    given = [name for name in (*_CHOSEN_BY_CALIBRATION, "every_checkpoint") if getattr(options, name) != defaults[name]]
    if given:
        raise UsageError(
            f"Method auto takes {chosen.method} from the calibration of {model_version_id}, with its own parameters; "
            f"{', '.join(given)} cannot be given beside it.",
            f"Leave that out, or name the method: --method {chosen.method}.",
        )
    tuned = {name: chosen.parameters[name] for name in _CHOSEN_BY_CALIBRATION if name in chosen.parameters}
    return replace(options, method=chosen.method, **tuned)


def _same_indexes(workspace: Workspace, model_version_id: str, chosen: Fidelity) -> bool:
    return method_indexes(workspace, model_version_id, chosen.method) == list(chosen.evidence["index_ids"])
