"""What may come in from the registry, and what may not."""

import dataclasses
import json
import pickle
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from mlflow.models import Model
from safetensors.torch import save_file
from torch import nn

from gradtrail.errors import CheckpointError, DataError, NotFoundError, UntrustedCodeError, UsageError
from gradtrail.flows.ingest import ingest
from gradtrail.lineage.exports.cyclonedx import bill_of_materials
from gradtrail.lineage.read import queries
from gradtrail.storage.models.checkpoints import read_weights
from gradtrail.storage.models.logged_models import logged_model_of
from gradtrail.storage.models.registry import ARTIFACT_FOLDER
from gradtrail.tasks.ingest.registering import TrainedWeights
from gradtrail.tasks.ingest.taking_in import choose_adapter, fetch_files, store_checkpoints


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


@contextmanager
def _mlflow_of(tiny, monkeypatch):
    """MLflow as a user's script has it: with the tracking address set for the whole process."""
    import mlflow

    monkeypatch.chdir(tiny.folder)
    previous = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(tiny.workspace.tracking_uri)
    try:
        mlflow.set_experiment(experiment_id=tiny.workspace.registry().experiment_id("by mlflow"))
        with mlflow.start_run():
            yield mlflow
    finally:
        mlflow.set_tracking_uri(previous)


def _model(tiny):
    torch.manual_seed(0)
    return tiny.adapter().build_model().eval()


def test_a_pickled_model_logged_by_mlflow_comes_in_only_behind_the_explicit_flag(flow, monkeypatch):
    with _mlflow_of(flow, monkeypatch) as mlflow:
        options = {"pip_requirements": ["torch"], "registered_model_name": "logged", "serialization_format": "pickle"}
        mlflow.pytorch.log_model(_model(flow), name="model", **options)
    with pytest.raises(UntrustedCodeError, match="execute code"):
        ingest(flow.workspace, "logged/1", flow.reference)
    assert ingest(flow.workspace, "logged/1", flow.reference, allow_code_execution=True).new
    _has_the_weights(flow, "logged/1", "pickle")


def test_a_model_logged_by_mlflow_as_it_does_now_comes_in_by_its_bytes_with_the_run_that_logged_it(flow, monkeypatch):
    with _mlflow_of(flow, monkeypatch) as mlflow:
        example = torch.zeros(2, 4).numpy()
        logged = mlflow.pytorch.log_model(_model(flow), name="model", pip_requirements=["torch"], input_example=example)
        client = mlflow.MlflowClient()
        client.create_registered_model("logged")
        client.create_model_version("logged", f"models:/{logged.model_id}")
    assert ingest(flow.workspace, "logged/1", flow.reference).new
    _has_the_weights(flow, "logged/1", "torch_export")
    with flow.workspace.ledger().read() as connection:
        assert queries.model_version(connection, "logged/1").run_id == logged.run_id


def _has_the_weights(flow, model_version_id, file_format):
    with flow.workspace.ledger().read() as connection:
        [checkpoint] = queries.checkpoints_of(connection, model_version_id)
    assert checkpoint.format == file_format
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


def _version_of(flow, folder: Path, name: str = "imported"):
    """A version by hand, whose source is a folder and which names no run."""
    client = flow.workspace.registry().client
    client.create_registered_model(name)
    client.create_model_version(name, str(folder))
    return f"{name}/1"


@pytest.fixture
def kept(tiny):
    """A folder with the weights of the adapter's model."""
    folder = tiny.folder / "kept files"
    folder.mkdir()
    save_file(_weights(tiny), folder / "model.safetensors")
    return folder


def test_a_version_without_a_run_is_taken_in_and_its_lineage_says_that_there_is_none(flow, kept):
    assert ingest(flow.workspace, _version_of(flow, kept), flow.reference).new
    assert ingest(flow.workspace, _version_of(flow, kept, "another"), flow.reference).new
    assert not ingest(flow.workspace, "imported/1").new
    with flow.workspace.ledger().read() as connection:
        runs = [
            queries.run(connection, queries.model_version(connection, f"{name}/1").run_id)
            for name in ("imported", "another")
        ]
        labels = connection.execute("SELECT label FROM lineage_node WHERE kind = 'run'").fetchall()
        bill = bill_of_materials(connection, "imported/1")
    assert "mlflow_run_id" not in bill
    assert "none:imported/1" not in bill
    assert [(run.run_id, run.is_in_mlflow) for run in runs] == [("none:imported/1", False), ("none:another/1", False)]
    assert flow.workspace.links().training_run(runs[0]) == ""
    assert {label for (label,) in labels} == {"none: the version was registered without a run"}


@pytest.mark.parametrize(
    "name",
    [
        "two words",
        "v1.2",
        "größe 模型 😀",
        "me@work",
        "o'neil",
        'say "x"',
        'o\'neil "x"',
        "a%20b#c?d&e",
        " lead",
        "`a`;--",
    ],
)
def test_every_name_that_mlflow_takes_is_found_again(tiny, kept, name):
    registry = tiny.workspace.registry()
    _version_of(tiny, kept, name)
    registry.client.create_model_version(name, str(kept))
    registry.client.create_registered_model("neighbour")
    registry.client.create_model_version("neighbour", str(kept))
    registry.client.set_registered_model_alias(name, "champion", "1")
    assert [version.model_version_id for version in registry.versions(name)] == [f"{name}/1", f"{name}/2"]
    found = {registry.resolve(reference).model_version_id for reference in (f"{name}@champion", f"{name}/1")}
    assert found == {f"{name}/1"}
    assert registry.resolve(name).model_version_id == f"{name}/2"
    files = registry.fetch(registry.resolve(f"{name}/1"), tiny.folder / "fetched")
    assert (files / "model.safetensors").is_file()


def test_a_name_with_an_at_sign_is_told_from_an_alias(tiny, kept):
    registry = tiny.workspace.registry()
    _version_of(tiny, kept, "me@work")
    _version_of(tiny, kept, "me")
    registry.client.set_registered_model_alias("me", "work", "1")
    assert registry.resolve("me@work").name == "me"
    assert registry.resolve("me@work/1").name == "me@work"


def test_names_with_spaces_and_signs_go_all_the_way_into_the_ledger(flow, kept):
    version = _version_of(flow, kept, "me@work 'größe' #1?")
    assert ingest(flow.workspace, version, flow.reference).model_version_id == version
    assert flow.workspace.registry().resolve(version).tags["gradtrail.adapter"] == flow.reference


def _stored(tiny, folder):
    """The checkpoints that an ingest keeps of a folder."""
    return _stored_of(tiny, tiny.workspace.registry().resolve(_version_of(tiny, folder)))


def _stored_of(tiny, version):
    chosen = choose_adapter(tiny.workspace, version, tiny.reference)
    files = fetch_files(tiny.workspace, version)
    return store_checkpoints(tiny.workspace, version, files, chosen, allow_code_execution=False)


def test_a_trainers_folder_is_taken_in_with_every_checkpoint_by_step(tiny):
    folder = tiny.folder / "output"
    for step, rate in ((20, 0.05), (10, 0.1)):
        sub = folder / f"checkpoint-{step}"
        sub.mkdir(parents=True)
        save_file({name: value + step for name, value in _weights(tiny).items()}, sub / "model.safetensors")
        for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin"):
            torch.save({"step": step}, sub / name)
        state = {"global_step": step, "log_history": [{"step": step, "learning_rate": rate}]}
        (sub / "trainer_state.json").write_text(json.dumps(state))
    stored = _stored(tiny, folder)
    assert [(each.step, each.learning_rate) for each in stored] == [(10, 0.1), (20, 0.05)]
    served = read_weights(Path(stored[-1].weights_uri))
    torch.testing.assert_close(served["0.weight"], _weights(tiny)["0.weight"] + 20)


def test_weights_that_do_not_fit_are_refused_before_a_byte_of_them_is_written(tiny):
    folder = tiny.folder / "huge"
    folder.mkdir()
    torch.save({"0.weight": torch.zeros(1).expand(20_000, 20_000)}, folder / "model.pt")
    with pytest.raises(CheckpointError, match=r"\(20000, 20000\) instead of \(6, 4\)"):
        _stored(tiny, folder)
    assert sum(path.stat().st_size for path in tiny.home.rglob("*.safetensors*")) == 0


def test_a_model_of_lightning_is_taken_in_by_its_part(tiny):
    """The layout of `Trainer.save_checkpoint`, Lightning 2.6.6, of a module with the model and a weighted loss."""
    folder = tiny.folder / "checkpoints"
    folder.mkdir()
    state = {f"model.{name}": value for name, value in _weights(tiny).items()} | {"loss.weight": torch.ones(3)}
    torch.save(
        {"state_dict": state, "pytorch-lightning_version": "2.6.6", "global_step": 40, "epoch": 2},
        folder / "epoch=1-step=40.ckpt",
    )
    [stored] = _stored(tiny, folder)
    assert stored.step == 40
    assert set(read_weights(Path(stored.weights_uri))) == set(_weights(tiny))


def test_registering_makes_mlflows_own_model_with_its_signature(tiny):
    version = tiny.register(parameters={"lr": "0.1", "config": "x" * 7000})
    registry = tiny.workspace.registry()
    model_id = logged_model_of(registry, version)
    assert version.tags["gradtrail.logged_model"] == model_id
    found = registry.client.get_logged_model(model_id)
    assert (found.source_run_id, found.params["lr"]) == (version.run_id, "0.1")
    assert json.loads(found.tags["mlflow.modelVersions"]) == [{"name": "tiny", "version": "1"}]
    signature = Model.load(_registered_folder(tiny, version) / "MLmodel").signature
    assert [each.shape for each in (signature.inputs.inputs[0], signature.outputs.inputs[0])] == [(-1, 4), (-1, 3)]
    assert registry.run(version.run_id).parameters["config"].endswith("[cut: MLflow keeps 6,000 characters]")


def test_a_promoted_version_is_recorded_by_where_its_files_lie(tiny):
    first = tiny.register()
    registry = tiny.workspace.registry()
    registry.client.copy_model_version("models:/tiny/1", "production")
    registry.client.delete_registered_model("tiny")
    tiny.register()
    promoted = registry.resolve("production")
    [checkpoint] = _stored_of(tiny, promoted)
    assert checkpoint.source_uri == f"runs:/{first.run_id}/gradtrail/step-00000000.safetensors"
