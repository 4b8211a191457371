"""Registering a trained model: weights, manifest, adapter and dataset go to MLflow as one model version."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from gradtrail.attribution.adapters.base import ModelAdapter, TrainingData
from gradtrail.attribution.adapters.loading import adapter_reference, adapter_source_sha256
from gradtrail.attribution.adapters.training_data import training_examples
from gradtrail.digests import canonical_json
from gradtrail.errors import UsageError
from gradtrail.nouns import DatasetVersion
from gradtrail.storage.models.checkpoints import load_into, write_safetensors
from gradtrail.storage.models.manifests import write_manifest
from gradtrail.storage.models.registry import (
    ADAPTER_SHA256_TAG,
    ADAPTER_TAG,
    ARTIFACT_FOLDER,
    CHECKPOINT_LIST,
    CHECKPOINT_TAG,
    DATASET_TAG,
    MANIFEST_FILE,
    RegisteredVersion,
    Registry,
)
from gradtrail.tasks.core.datasets import manifest_rows


@dataclass(frozen=True)
class TrainedWeights:
    """Weights that a training run kept: after `step` updates, at `learning_rate` (None when unknown)."""

    step: int
    learning_rate: float | None
    state_dict: Mapping[str, Tensor]


def register_model(
    registry: Registry,
    model: nn.Module,
    *,
    adapter: ModelAdapter,
    training_data: TrainingData | None,
    name: str,
    checkpoints: Sequence[TrainedWeights],
    aliases: Sequence[str],
    parameters: Mapping[str, str],
    run_id: str,
) -> RegisteredVersion:
    """Log everything to one run and register it as the next version of `name`; see `gradtrail.register`.

    Raises:
        DataError: for an empty training set, or an example id that occurs twice.
        CheckpointError: if weights do not fit `adapter.build_model()` or are not finite.
        UsageError: if the last checkpoint is not the model, or the adapter cannot be imported again.
    """
    reference = adapter_reference(adapter)
    kept = list(checkpoints) or [TrainedWeights(0, None, model.state_dict())]
    _refuse_other_weights(model, kept[-1])
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / ARTIFACT_FOLDER
        data = training_examples(adapter) if training_data is None else training_data
        manifest = write_manifest(manifest_rows(data), folder)
        dataset_version_id = manifest.stem
        manifest = manifest.rename(folder / MANIFEST_FILE)
        listed = []
        for weights in kept:
            file = f"step-{weights.step:08d}.safetensors"
            load_into(adapter.build_model(), weights.state_dict, name=f"{name} at step {weights.step}")
            sha256 = write_safetensors(weights.state_dict, folder / file)
            listed.append(
                {"file": file, "step": weights.step, "learning_rate": weights.learning_rate, "sha256": sha256}
            )
        (folder / CHECKPOINT_LIST).write_bytes(canonical_json({"checkpoints": listed}))

        run_id = run_id or registry.start_run(name, f"train {name}")
        for key, value in parameters.items():
            registry.client.log_param(run_id, key, value)
        registry.client.log_artifacts(run_id, str(folder), ARTIFACT_FOLDER)
        count = sum(1 for _ in manifest.open("rb"))
        uri = f"runs:/{run_id}/{ARTIFACT_FOLDER}/{MANIFEST_FILE}"
        registry.log_dataset(run_id, DatasetVersion(dataset_version_id, f"{name} training data", count, uri))
    tags = {
        ADAPTER_TAG: reference,
        ADAPTER_SHA256_TAG: adapter_source_sha256(reference),
        DATASET_TAG: dataset_version_id,
        CHECKPOINT_TAG: str(listed[-1]["sha256"]),
    }
    for key, value in tags.items():
        registry.client.set_tag(run_id, key, value)
    return registry.add_version(name, run_id, tags, aliases)


def _refuse_other_weights(model: nn.Module, last: TrainedWeights) -> None:
    own = model.state_dict()
    differing = [
        key
        for key in {*own, *last.state_dict}
        if key not in own or key not in last.state_dict or not torch.equal(own[key].cpu(), last.state_dict[key].cpu())
    ]
    if differing:
        raise UsageError(
            f"The last checkpoint (step {last.step}) is not the model: {sorted(differing)[0]} differs.",
            "Give the checkpoints in order of training, the served weights last.",
        )
