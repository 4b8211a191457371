"""Extensions of other packages: loaded where the settings allow them, and named with the digest of their source."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gradtrail.attribution.layers.registry import LayerRule
from gradtrail.attribution.methods.registry import METHODS
from gradtrail.errors import UsageError
from gradtrail.extensions import Loaded, load_object
from gradtrail.tasks.core.workspace import Workspace


def load_extension(workspace: Workspace, reference: str, what: str = "an extension") -> Loaded:
    """Import `module:name`; what its module registers by decorators is known from then on.

    Raises:
        UntrustedCodeError: if the settings do not allow it. Nothing of it has run then.
        NotFoundError: if there is no such module or name.
        UsageError: if the reference is malformed.
    """
    return load_object(
        reference, what, allowed=workspace.extensions, setting="extensions", search_path=Path(workspace.adapter_path)
    )


def load_layer_rules(workspace: Workspace) -> None:
    """Import the layer rules that the settings name.

    Raises:
        NotFoundError: if there is no such module or name.
        UsageError: if one is no layer rule.
    """
    for reference in workspace.layer_rules:
        loaded = load_object(
            reference,
            "a layer rule",
            allowed=workspace.layer_rules,
            setting="layer_rules",
            search_path=Path(workspace.adapter_path),
        )
        if not (isinstance(loaded.value, type) and issubclass(loaded.value, LayerRule)):
            raise UsageError(f"{reference} is no layer rule.", "Derive it from gradtrail.attribution.layers.LayerRule.")


def load_method(workspace: Workspace, method: str | None) -> None:
    """Import a method that is named `module:function`; the names of gradtrail's own need nothing.

    Raises:
        UntrustedCodeError: if the settings do not allow it. Nothing of it has run then.
        UsageError: if it is no attribution method.
    """
    if method is None or ":" not in method:
        return
    load_extension(workspace, method, "a method")
    if method not in METHODS:
        raise UsageError(f"{method} is no attribution method.", "Decorate it with attribution_method(…).")


def method_source(workspace: Workspace, method: str | None) -> dict[str, Any]:
    """What pins a method of another package in an audit: the digest of its source; nothing for gradtrail's own."""
    if method is None or ":" not in method:
        return {}
    return {"method_sha256": load_extension(workspace, method, "a method").source_sha256}
