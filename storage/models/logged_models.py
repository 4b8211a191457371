"""MLflow 3's own model behind a version: its page has signature, source run and every figure logged with its id."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from mlflow.entities import LoggedModelInput, LoggedModelOutput
from mlflow.exceptions import MlflowException
from torch import Tensor

from gradtrail.storage.models.registry import ARTIFACT_FOLDER, RegisteredVersion, Registry

LOGGED_MODEL_TAG = "gradtrail.logged_model"
MODEL_FILE = "MLmodel"

_VERSIONS_TAG = "mlflow.modelVersions"
_ID = re.compile(r"(?:^models:|/)/?(m-[0-9a-f]{32})(?:/|$)")
_REFUSED_IN_NAMES = re.compile("[/:.%\"']")


def create_logged_model(
    registry: Registry,
    run_id: str,
    name: str,
    step: int,
    *,
    parameters: Mapping[str, str],
    tags: Mapping[str, str],
    inputs: Mapping[str, Tensor],
    outputs: Tensor | None,
) -> str:
    """Make the model of a run, with the shapes of its inputs and outputs; returns its id.

    The id is empty where the server has no such models. No file of it can be executed: it describes, and holds no code.
    """
    client = registry.client
    run = client.get_run(run_id)
    try:
        made = client.create_logged_model(
            run.info.experiment_id,
            _REFUSED_IN_NAMES.sub("-", name),
            source_run_id=run_id,
            tags=dict(tags),
            params=dict(parameters),
        )
    except MlflowException as fault:
        registry.require_answer(fault)
        if fault.error_code != "ENDPOINT_NOT_FOUND":
            raise
        return ""
    model_id = str(made.model_id)
    with tempfile.TemporaryDirectory() as scratch:
        described = Path(scratch) / MODEL_FILE
        _write_description(described, run_id, model_id, inputs, outputs)
        client.log_artifact(run_id, str(described), ARTIFACT_FOLDER)
        client.log_model_artifact(model_id, str(described))
    client.log_outputs(run_id, [LoggedModelOutput(model_id, step)])
    client.finalize_logged_model(model_id, "READY")
    return model_id


def name_version(registry: Registry, model_id: str, version: RegisteredVersion) -> None:
    """Let the model's page lead to its registered version, as MLflow's own `register_model` does."""
    if model_id:
        known = json.loads(registry.client.get_logged_model(model_id).tags.get(_VERSIONS_TAG, "[]"))
        named = [*known, {"name": version.name, "version": str(version.version)}]
        registry.client.set_logged_model_tags(model_id, {_VERSIONS_TAG: json.dumps(named)})


def logged_model_of(registry: Registry, version: RegisteredVersion) -> str:
    """The id of the model behind a version, whoever registered it; empty where it has none, or that was deleted."""
    tagged = version.tags.get(LOGGED_MODEL_TAG, "")
    places = (version.source_uri or "", registry.location(version))
    found = [tagged] if tagged else [match[1] for place in places if (match := _ID.search(place))]
    for model_id in found:
        try:
            return str(registry.client.get_logged_model(model_id).model_id)
        except MlflowException as fault:
            registry.require_answer(fault)
    return ""


def log_as_input(registry: Registry, run_id: str, model_id: str) -> None:
    """Say that a run is about this model, so that its page and the run's lead to each other."""
    if model_id:
        registry.client.log_inputs(run_id, models=[LoggedModelInput(model_id)])


def _write_description(
    file: Path, run_id: str, model_id: str, inputs: Mapping[str, Tensor], outputs: Tensor | None
) -> None:
    from mlflow.models import Model, ModelSignature
    from mlflow.types import Schema, TensorSpec

    def spec(name: str, tensor: Tensor) -> Any:
        dtype = tensor.dtype if tensor.dtype != torch.bfloat16 else torch.float32
        numpy_type = torch.empty(0, dtype=dtype).numpy().dtype
        return TensorSpec(numpy_type, (-1, *tensor.shape[1:]), name or None)

    signature = None
    if inputs and outputs is not None:
        columns = Schema([spec(name, tensor) for name, tensor in inputs.items()])
        signature = ModelSignature(columns, Schema([spec("", outputs)]))
    described = Model(ARTIFACT_FOLDER, run_id, signature=signature, model_id=model_id)
    described.add_flavor("gradtrail", weights="safetensors")
    described.save(str(file))
