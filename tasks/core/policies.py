"""The policy that audits of this installation are held to."""

from __future__ import annotations

from pathlib import Path

from gradtrail.reports.policies.file import Policy, load_policy
from gradtrail.tasks.core.extensions import load_extension
from gradtrail.tasks.core.workspace import Workspace


def workspace_policy(workspace: Workspace) -> Policy:
    """The policy file of the settings, or the built-in policy.

    Raises:
        NotFoundError: there is no such file, or a rule's module is not found.
        UsageError: the file cannot be used; the message names file, rule and key.
        UntrustedCodeError: a rule's kind names code that the settings do not allow.
    """
    path = Path(workspace.policy) if workspace.policy else None
    return load_policy(path, lambda kind: load_extension(workspace, kind, "a policy rule"))
