"""`gradtrail.register`: one call at the end of a training script."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import nn

from gradtrail.attribution.adapters.base import ModelAdapter, TrainingData
from gradtrail.attribution.adapters.loading import load_adapter
from gradtrail.settings import Settings, load_settings
from gradtrail.storage.models.registry import RegisteredVersion
from gradtrail.tasks.ingest.registering import TrainedWeights, read_checkpoints, register_model


def register(
    model: nn.Module,
    *,
    adapter: ModelAdapter,
    name: str,
    training_data: TrainingData | None = None,
    checkpoints: Sequence[TrainedWeights] = (),
    alias: str = "",
    parameters: Mapping[str, str] | None = None,
    run_id: str = "",
    settings: Settings | None = None,
) -> RegisteredVersion:
    """Log a trained model to MLflow with what an audit needs, and register it as the next version of `name`.

    Logged are: the weights as safetensors (every checkpoint given), the dataset manifest, the dataset as an input of
    the run, and tags that name the adapter, its source digest, the dataset version and the checkpoint.

    Args:
        model: the trained model, as it will serve.
        adapter: how gradtrail builds the model again and reads its data; its class must live in an importable module.
        name: the registered model's name.
        training_data: what it was trained on; default: `adapter.training_data()`.
        checkpoints: weights kept on the way, in order of training, the model itself last; default: only the model.
        alias: alias to move to this version, for example `champion`.
        parameters: parameters of the training to log with the run.
        run_id: MLflow run to log to; default: the active run, else a new one.
        settings: default: those of gradtrail.toml and GRADTRAIL_*.

    Returns:
        The registered version; `.model_version_id` is what audits call it.

    Raises:
        DataError: for an empty training set, or an example id that occurs twice.
        CheckpointError: if weights do not fit `adapter.build_model()` or are not finite.
        UsageError: if the last checkpoint is not the model, or the adapter cannot be imported again.
    """
    import mlflow

    workspace = (settings or load_settings()).workspace()
    active = mlflow.active_run()
    return register_model(
        workspace.registry(),
        model,
        adapter=adapter,
        training_data=training_data,
        name=name,
        checkpoints=checkpoints,
        aliases=[alias] if alias else [],
        parameters=parameters or {},
        run_id=run_id or (active.info.run_id if active else ""),
    )


def register_file(weights: Path, *, adapter: str, name: str, alias: str, settings: Settings) -> RegisteredVersion:
    """Register weights that lie on disk; the adapter is named as `module:Class` and thereby allowed to run.

    Args:
        weights: a file, or a folder as `save_pretrained`, a Trainer, peft, Lightning or MLflow leave it; several
            checkpoints of a Trainer become checkpoints of the version, in order of steps.
        adapter: `module:Class`.
        name: the registered model's name.
        alias: alias to move to the new version; empty moves none.
        settings: those of gradtrail.toml and GRADTRAIL_*.

    Raises:
        CheckpointError: if the weights cannot be read safely or do not fit the adapter's model.
        NotFoundError: if there is no such adapter.
    """
    loaded = load_adapter(adapter, allowed=[adapter], search_path=settings.adapter_path)
    return register_model(
        settings.workspace().registry(),
        None,
        adapter=loaded.adapter,
        training_data=None,
        name=name,
        checkpoints=read_checkpoints(weights, loaded.adapter),
        aliases=[alias] if alias else [],
        parameters={},
        run_id="",
    )
