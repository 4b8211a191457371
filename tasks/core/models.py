"""A model version's model, ready to measure: pinned adapter, checked weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from torch import nn

from gradtrail.attribution.adapters.base import ModelAdapter, TrainingData
from gradtrail.attribution.adapters.faults import plain_faults
from gradtrail.attribution.adapters.loading import load_adapter
from gradtrail.attribution.adapters.training_data import training_examples
from gradtrail.errors import ModelError
from gradtrail.lineage.read import queries
from gradtrail.nouns import Checkpoint, DatasetVersion, ModelVersion
from gradtrail.storage.models.checkpoints import load_into, read_file
from gradtrail.tasks.core.extensions import load_layer_rules
from gradtrail.tasks.core.ledger_nouns import recorded_dataset, recorded_model_version
from gradtrail.tasks.core.workspace import Workspace


@dataclass(frozen=True)
class PinnedModel:
    """What the ledger recorded of a model version, and how to make its model again.

    `decided_by` are the digests of what decides the adapter's numbers, as it is now.
    """

    model_version: ModelVersion
    dataset: DatasetVersion
    checkpoints: tuple[Checkpoint, ...]
    adapter: ModelAdapter
    decided_by: Mapping[str, str]

    @property
    def serving(self) -> Checkpoint:
        """The checkpoint that serves: the last one."""
        return self.checkpoints[-1]

    @cached_property
    def training_data(self) -> TrainingData:
        """The adapter's training data, asked for once."""
        return training_examples(self.adapter)

    def load(self, checkpoint: Checkpoint) -> nn.Module:
        """Build the model with the weights of one checkpoint, in eval mode.

        Raises:
            CheckpointError: if the file is not the one that was ingested, does not fit, or is an adapter for another
                base than build_model gives.
        """
        with plain_faults():
            model = self.adapter.build_model()
        read = read_file(Path(checkpoint.weights_uri), expected_sha256=checkpoint.weights_sha256)
        load_into(
            model,
            read.tensors,
            name=f"{self.model_version.model_version_id} at step {checkpoint.step}",
            expected_base_sha256=read.base_sha256,
        )
        return model.eval()

    def require_measuring(self, measured_by: Mapping[str, str] | None) -> None:
        """Refuse to measure where what decides the numbers is not what it was; None asks nothing.

        Raises:
            ModelError: naming what changed.
        """
        now = self.decided_by
        if measured_by is None or dict(measured_by) == dict(now):
            return
        changed = sorted(name for name in {*now, *measured_by} if now.get(name) != measured_by.get(name))
        raise ModelError(
            f"What the adapter {self.model_version.adapter} measures by changed since "
            f"{self.model_version.model_version_id} was taken in: {', '.join(changed)}.",
            "Bring that back; or register the model again, which makes an index of its own.",
        )


def pinned_model(workspace: Workspace, model_version_id: str) -> PinnedModel:
    """Read a model version from the ledger and load its adapter, whose source must be the pinned one.

    Raises:
        NotFoundError: if the model version was never ingested.
        UntrustedCodeError: if the adapter's source changed since.
    """
    with workspace.ledger().read() as connection:
        model_version = recorded_model_version(connection, model_version_id)
        checkpoints = queries.checkpoints_of(connection, model_version_id)
        dataset = recorded_dataset(connection, model_version.dataset_version_id)
    loaded = load_adapter(
        model_version.adapter,
        allowed=[model_version.adapter],
        expected_sha256=model_version.adapter_sha256,
        search_path=Path(workspace.adapter_path),
    )
    load_layer_rules(workspace)
    return PinnedModel(model_version, dataset, tuple(checkpoints), loaded.adapter, loaded.decided_by)
