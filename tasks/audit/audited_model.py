"""A model version as an audit works on it, opened once a run."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

from torch import nn

from gradtrail.tasks.audit.options import AuditOptions
from gradtrail.tasks.core.models import PinnedModel, pinned_model
from gradtrail.tasks.core.workspace import Workspace
from gradtrail.tasks.index.opened import OpenIndex, open_index_with_model


class AuditedModel:
    """The adapter, the indexes and the models of an audit, the serving checkpoint's last: each opened when first used.

    Weights are read, hashed and loaded once for every portion of outputs. Not a dataclass, for Prefect would look into
    it whenever a task takes it.

    Args:
        workspace: where everything lives.
        model_version_id: the model version whose outputs are audited.
        index_ids: the indexes that are scored.
        options: how the audit scores.
    """

    def __init__(
        self, workspace: Workspace, model_version_id: str, index_ids: Sequence[str], options: AuditOptions
    ) -> None:
        self.workspace = workspace
        self.model_version_id = model_version_id
        self.options = options
        self._index_ids = tuple(index_ids)

    @cached_property
    def pinned(self) -> PinnedModel:
        """What the ledger recorded of the model version, and its adapter."""
        return pinned_model(self.workspace, self.model_version_id)

    @property
    def opened(self) -> tuple[OpenIndex, ...]:
        """The indexes with their plans."""
        return tuple(index for index, _ in self._with_models)

    @property
    def models(self) -> tuple[nn.Module, ...]:
        """The model at the checkpoint of each index, in eval mode, on the device of the options."""
        return tuple(model for _, model in self._with_models)

    @cached_property
    def _with_models(self) -> list[tuple[OpenIndex, nn.Module]]:
        found = [open_index_with_model(self.workspace, self.pinned, index_id) for index_id in self._index_ids]
        return [(index, model.to(self.options.device)) for index, model in found]
