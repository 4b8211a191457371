"""What may come in from the registry, and what may not."""

import dataclasses
import json
import pickle
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from gradtrail.errors import CheckpointError, DataError, NotFoundError, UntrustedCodeError, UsageError
from gradtrail.flows.ingest import ingest
from gradtrail.lineage.read import queries
from gradtrail.storage.models.checkpoints import read_weights
from gradtrail.storage.models.registry import ARTIFACT_FOLDER
from gradtrail.tasks.ingest.registering import TrainedWeights


@pytest.fixture
def flow(tiny, prefect_server):
    return tiny


def _registered_folder(tiny, version) -> Path:
    return next((tiny.home / "artifacts").glob(f"{version.run_id}/artifacts/{ARTIFACT_FOLDER}"))


def _register_file(tiny, path: Path, name: str = "other") -> None:
    registry = tiny.workspace.registry()
    run_id = registry.start_run(name, "by hand")
    registry.client.log_artifact(run_id, str(path), ARTIFACT_FOLDER)
    registry.add_version(name, run_id, {}, ["champion"])


def test_ingest_records_checkpoint_dataset_run_and_adapter_once(flow):
    version = flow.register()
    outcome = ingest(flow.workspace, "tiny@champion")
    assert outcome.new
    assert outcome.example_count == 40
    with flow.workspace.ledger().read() as connection:
        recorded = queries.model_version(connection, "tiny/1")
        [checkpoint] = queries.checkpoints_of(connection, "tiny/1")
    assert recorded.run_id == version.run_id
    assert recorded.adapter == flow.reference
    assert recorded.dataset_version_id == version.tags["gradtrail.dataset_version"]
    assert checkpoint.checkpoint_id == version.tags["gradtrail.checkpoint"]
    assert not ingest(flow.workspace, "tiny/1").new


def test_registering_empty_or_ambiguous_data_is_refused_and_leaves_no_version(flow):
    flow.rows[3]["id"] = flow.rows[2]["id"]
    flow.write()
    with pytest.raises(DataError, match=r"'row-2' occurs twice .* with other content"):
        flow.register()
    with pytest.raises(DataError, match="training set is empty"):
        flow.register(training_data=[])
    with pytest.raises(NotFoundError, match="No model named tiny"):
        flow.workspace.registry().resolve("tiny")


def test_registering_weights_that_are_not_finite_or_not_the_model_is_refused(flow):
    broken = flow.adapter().build_model()
    with torch.no_grad():
        broken[0].weight[0, 0] = torch.nan
    with pytest.raises(CheckpointError, match=r"0\.weight"):
        flow.register(checkpoints=[TrainedWeights(1, 0.1, broken.state_dict()), TrainedWeights(2, 0.1, _weights(flow))])
    with pytest.raises(UsageError, match="not the model"):
        flow.register(checkpoints=[TrainedWeights(1, 0.1, nn.Linear(2, 2).state_dict())])


def _weights(tiny):
    torch.manual_seed(0)
    return tiny.adapter().build_model().state_dict()


def test_an_adapter_in_the_training_script_itself_cannot_be_registered(flow):
    class Local(type(flow.adapter())):
        pass

    with pytest.raises(UsageError, match="no later process can import"):
        flow.register(adapter=Local())


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("missing@champion", "No model named missing"),
        ("tiny@nobody", "no alias nobody"),
        ("tiny/99", "no version 99"),
        ("tiny@", "does not name a model version"),
    ],
)
def test_unknown_references_are_named_with_what_exists(flow, reference, message):
    flow.register()
    with pytest.raises(UsageError, match=message):
        ingest(flow.workspace, reference)


def test_a_checkpoint_of_another_architecture_is_refused_by_parameter(flow):
    flow.register()
    flow.write(hidden=9)
    sys.modules.pop(flow.module)
    with pytest.raises(CheckpointError, match=r"0\.weight"):
        ingest(flow.workspace, "tiny@champion")
    assert not (flow.home / "ledger.duckdb").exists()


def test_a_truncated_safetensors_file_is_refused_by_digest(flow):
    version = flow.register()
    file = next(_registered_folder(flow, version).glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-7])
    with pytest.raises(CheckpointError, match="damaged"):
        ingest(flow.workspace, "tiny@champion")


def test_a_changed_manifest_is_refused(flow):
    version = flow.register()
    manifest = _registered_folder(flow, version) / "manifest.jsonl"
    manifest.write_bytes(manifest.read_bytes().replace(b"left", b"LEFT", 1))
    with pytest.raises(DataError, match="was changed"):
        ingest(flow.workspace, "tiny@champion")


def test_a_checkpoint_list_cannot_point_outside_its_folder(flow):
    version = flow.register()
    listing = _registered_folder(flow, version) / "checkpoints.json"
    content = json.loads(listing.read_text())
    content["checkpoints"][0]["file"] = "../../../../../../../../etc/hostname"
    listing.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="not among the version's files"):
        ingest(flow.workspace, "tiny@champion")


def test_a_state_dict_registered_by_other_means_is_ingested_with_a_named_adapter(flow):
    path = flow.folder / "model.pth"
    torch.save(_weights(flow), path)
    _register_file(flow, path)
    with pytest.raises(UsageError, match="does not say which adapter"):
        ingest(flow.workspace, "other@champion")
    outcome = ingest(flow.workspace, "other@champion", flow.reference)
    with flow.workspace.ledger().read() as connection:
        [checkpoint] = queries.checkpoints_of(connection, outcome.model_version_id)
    assert checkpoint.format == "torch_state_dict"
    assert checkpoint.learning_rate is None
    assert checkpoint.checkpoint_id != checkpoint.weights_sha256


def test_a_pickle_is_refused_and_nothing_of_it_runs_unless_allowed(flow):
    marker = flow.folder / "it-ran"

    class Evil:
        def __reduce__(self):
            return (Path.touch, (marker,))

    path = flow.folder / "model.pth"
    path.write_bytes(pickle.dumps(Evil()))
    _register_file(flow, path)
    with pytest.raises(UntrustedCodeError, match="execute code") as caught:
        ingest(flow.workspace, "other@champion", flow.reference)
    assert "--allow-code-execution" in caught.value.remedy
    assert not marker.exists()


def test_a_model_logged_by_mlflow_comes_in_only_behind_the_explicit_flag(flow, monkeypatch):
    import mlflow

    monkeypatch.chdir(flow.folder)
    previous = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(flow.workspace.tracking_uri)
    try:
        mlflow.set_experiment(experiment_id=flow.workspace.registry().experiment_id("by mlflow"))
        torch.manual_seed(0)
        model = flow.adapter().build_model().eval()
        with mlflow.start_run():
            mlflow.pytorch.log_model(
                model,
                name="model",
                registered_model_name="logged",
                input_example=torch.zeros(2, 4).numpy(),
                pip_requirements=["torch"],
            )
    finally:
        mlflow.set_tracking_uri(previous)
    with pytest.raises(UntrustedCodeError, match="execute code"):
        ingest(flow.workspace, "logged/1", flow.reference)
    assert ingest(flow.workspace, "logged/1", flow.reference, allow_code_execution=True).new
    with flow.workspace.ledger().read() as connection:
        [checkpoint] = queries.checkpoints_of(connection, "logged/1")
    stored = read_weights(Path(checkpoint.weights_uri), expected_sha256=checkpoint.weights_sha256)
    for name, tensor in _weights(flow).items():
        torch.testing.assert_close(stored[name], tensor)


def test_an_adapter_outside_the_allow_list_does_not_run(flow):
    flow.register()
    marker = flow.folder / "imported"
    module = flow.folder / f"{flow.module}.py"
    module.write_text(f"open({str(marker)!r}, 'w').close()\n" + module.read_text())
    sys.modules.pop(flow.module, None)
    strict = dataclasses.replace(flow.workspace, allowed_adapters=())
    with pytest.raises(UntrustedCodeError, match="allow-list"):
        ingest(strict, "tiny@champion")
    with pytest.raises(UntrustedCodeError, match="changed"):
        ingest(flow.workspace, "tiny@champion")
    assert not marker.exists()
