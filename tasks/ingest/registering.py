"""Registering a trained model: weights, manifest, adapter and dataset go to MLflow as one model version."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from gradtrail.attribution.adapters.base import ModelAdapter, TrainingData
from gradtrail.attribution.adapters.faults import plain_faults
from gradtrail.attribution.adapters.loading import adapter_reference, adapter_source_sha256
from gradtrail.attribution.adapters.training_data import training_examples
from gradtrail.digests import canonical_json
from gradtrail.errors import CheckpointError, UsageError
from gradtrail.nouns import DatasetVersion
from gradtrail.storage.models.checkpoints import fit_weights, load_into, read_weights, write_safetensors
from gradtrail.storage.models.frozen_bases import base_metadata, refuse_other_adapter
from gradtrail.storage.models.logged_models import LOGGED_MODEL_TAG, create_logged_model, name_version
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
    marked_where_cut,
)
from gradtrail.storage.models.weight_folders import find_weights
from gradtrail.tasks.core.datasets import manifest_rows
from gradtrail.tasks.ingest.adapters_alike import (
    is_peft,
    outputs_of_first,
    refuse_other_outputs,
    refuse_unlike_merged,
)
from gradtrail.tasks.ingest.signatures import measured_shapes


@dataclass(frozen=True)
class TrainedWeights:
    """Weights that a training run kept: after `step` updates, at `learning_rate` (None when unknown).

    `within_larger` says that they are of a LightningModule, of which the adapter's model may be one part.
    """

    step: int
    learning_rate: float | None
    state_dict: Mapping[str, Tensor]
    within_larger: bool = False


def register_model(
    registry: Registry,
    model: nn.Module | None,
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

    Without a `model` the checkpoints say all: weights that lie on disk are registered so.

    Raises:
        DataError: for an empty training set, or an example id that occurs twice.
        CheckpointError: if weights do not fit `adapter.build_model()` or are not finite.
        UsageError: if the last checkpoint is not the model, or the adapter cannot be imported again.
    """
    reference = adapter_reference(adapter)
    kept = list(checkpoints)
    if model is not None:
        kept = kept or [TrainedWeights(0, None, model.state_dict())]
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
            sha256 = _write_checked(adapter, data, weights, folder / file, name=f"{name} at step {weights.step}")
            if model is not None and weights is kept[-1] and is_peft(model):
                _refuse_unlike_reloaded(adapter, data, model, folder / file, name=name)
            listed.append(
                {"file": file, "step": weights.step, "learning_rate": weights.learning_rate, "sha256": sha256}
            )
        (folder / CHECKPOINT_LIST).write_bytes(canonical_json({"checkpoints": listed}))

        run_id = run_id or registry.start_run(name, f"train {name}")
        for key, value in parameters.items():
            registry.client.log_param(run_id, key, marked_where_cut(str(value)))
        registry.client.log_artifacts(run_id, str(folder), ARTIFACT_FOLDER)
        count = sum(1 for _ in manifest.open("rb"))
        uri = f"runs:/{run_id}/{ARTIFACT_FOLDER}/{MANIFEST_FILE}"
        registry.log_dataset(run_id, DatasetVersion(dataset_version_id, f"{name} training data", count, uri))
        inputs, outputs = measured_shapes(adapter, folder / str(listed[-1]["file"]), data)
    tags = {
        ADAPTER_TAG: reference,
        ADAPTER_SHA256_TAG: adapter_source_sha256(reference),
        DATASET_TAG: dataset_version_id,
        CHECKPOINT_TAG: str(listed[-1]["sha256"]),
    }
    for key, value in tags.items():
        registry.client.set_tag(run_id, key, value)
    model_id = create_logged_model(
        registry,
        run_id,
        name,
        kept[-1].step,
        parameters={key: marked_where_cut(str(value)) for key, value in parameters.items()},
        tags=tags,
        inputs=inputs,
        outputs=outputs,
    )
    version = registry.add_version(name, run_id, {**tags, LOGGED_MODEL_TAG: model_id} if model_id else tags, aliases)
    name_version(registry, model_id, version)
    return version


def read_checkpoints(weights: Path, adapter: ModelAdapter) -> list[TrainedWeights]:
    """Read the weights in a file or folder, in order of steps, the ones that serve last.

    Raises:
        CheckpointError: they cannot be read safely, or nobody can say which ones serve.
    """
    if not weights.exists():
        raise CheckpointError(f"There is no file or folder {weights}.", "Check the path.")
    read = []
    for found in find_weights(weights, label=str(weights)):
        file = found.read()
        if found.adapter_config is not None:
            refuse_other_adapter(adapter.build_model(), found.adapter_config, name=str(found.path))
        if file.base_sha256:
            with plain_faults():
                built = adapter.build_model()
            fit_weights(built, file.tensors, name=str(found.path), expected_base_sha256=file.base_sha256)
        step = next((each for each in (found.step, file.step) if each is not None), 0)
        read.append(TrainedWeights(step, found.learning_rate, file.tensors, within_larger=file.within_larger))
    return read


def _write_checked(
    adapter: ModelAdapter, data: TrainingData, weights: TrainedWeights, destination: Path, *, name: str
) -> str:
    """Write weights that fit the adapter's model, under that model's names; returns the sha256 of the file."""
    with plain_faults():
        built = adapter.build_model()
    fitted = load_into(built, weights.state_dict, name=name, within_larger=weights.within_larger)
    if is_peft(built):
        refuse_unlike_merged(adapter, built, data, name=name)
    return write_safetensors(fitted.tensors, destination, base_metadata(fitted.base_sha256))


def _refuse_unlike_reloaded(
    adapter: ModelAdapter, data: TrainingData, model: nn.Module, file: Path, *, name: str
) -> None:
    again = adapter.build_model()
    load_into(again, read_weights(file), name=name)
    given, reloaded = (outputs_of_first(adapter, each, data) for each in (model, again))
    refuse_other_outputs(given, reloaded, again, name=name, how="loaded again")


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
