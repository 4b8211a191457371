"""The flows that schedules run: their parameters are names, and all else comes from the settings of this host.

A parameter may only narrow: it names a model of the settings. Where things live, which adapters may run and where
they are imported from are in no parameter, so that who can start a run cannot have other code run here.
"""

from __future__ import annotations

import contextlib

from prefect import flow

from gradtrail.errors import UsageError
from gradtrail.flows.audit import AuditOutcome
from gradtrail.flows.audit import audit as audit_outputs
from gradtrail.flows.watch import WatchOutcome
from gradtrail.flows.watch import watch as watch_registry
from gradtrail.nouns import Target
from gradtrail.settings import Settings, load_settings, settings_file
from gradtrail.tasks.audit.options import AuditOptions
from gradtrail.tasks.core.watched import WatchedModel
from gradtrail.tasks.core.workspace import Workspace


@flow(name="gradtrail-scheduled-watch")
def watch(references: list[str] | None = None) -> WatchOutcome:
    """Look for new versions of the models of this host's settings; with `references`, only of those.

    Raises:
        UsageError: a reference is not in the settings.
        PreparationError: at the end, where something failed.
    """
    settings, workspace = _of_this_host()
    models = settings.models
    if references is not None:
        models = tuple(each for name in references for each in _named(settings, name))
    found: WatchOutcome = watch_registry.fn(workspace, models)
    return found


@flow(name="gradtrail-scheduled-audit")
def audit(reference: str, target: Target = "emitted", method: str = "auto") -> AuditOutcome:
    """Audit what is new of a model of this host's settings.

    Raises:
        UsageError: the settings do not name the model with that target and method.
    """
    settings, workspace = _of_this_host()
    _named(settings, reference, target, method)
    found: AuditOutcome = audit_outputs.fn(workspace, reference, AuditOptions(target=target, method=method))
    return found


def _of_this_host() -> tuple[Settings, Workspace]:
    """The settings, read in the folder of their file, for paths in it are relative to that."""
    with contextlib.chdir(settings_file().resolve().parent):
        settings = load_settings()
        return settings, settings.workspace()


def _named(
    settings: Settings, reference: str, target: Target | None = None, method: str | None = None
) -> list[WatchedModel]:
    found = [
        each
        for each in settings.models
        if each.reference == reference and target in (None, each.target) and method in (None, each.method)
    ]
    if not found:
        besides = f" with target {target} and method {method}" if method else ""
        raise UsageError(
            f"The settings of this host name no model {reference}{besides}.",
            f"Add it as [[models]] to {settings_file()}: runs do what the settings say and nothing else.",
        )
    return found
