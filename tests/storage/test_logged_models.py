"""What MLflow 3 shows of what gradtrail writes: models with figures, data sets, promoted versions, cut values."""

import pytest
import torch
from mlflow.models import Model

from gradtrail.nouns import DatasetVersion
from gradtrail.storage.models.audit_runs import describe, describe_model, open_audit_run, publish_audit
from gradtrail.storage.models.logged_models import (
    LOGGED_MODEL_TAG,
    create_logged_model,
    logged_model_of,
    name_version,
)
from gradtrail.storage.models.registry import Registry, marked_where_cut

NOTE = "mlflow.note.content"
DATASET = DatasetVersion("d" * 64, "tiny training data", 40, "/somewhere/manifest.jsonl")


@pytest.fixture
def registry(tmp_path, migrated_mlflow):
    database = tmp_path / "mlflow.db"
    database.write_bytes(migrated_mlflow.read_bytes())
    return Registry(f"sqlite:///{database}", str(tmp_path / "artifacts"))


def _made(registry, name="a/b.c", **changes):
    run_id = registry.start_run("train", "train")
    given = {
        "parameters": {"lr": "0.1"},
        "tags": {"gradtrail.checkpoint": "c"},
        "inputs": {"": torch.zeros(1, 3, 8)},
        "outputs": torch.zeros(1, 10, dtype=torch.bfloat16),
    }
    return run_id, create_logged_model(registry, run_id, name, 7, **{**given, **changes})


def test_a_model_has_source_run_signature_and_its_registered_versions(registry, tmp_path):
    run_id, model_id = _made(registry)
    version = registry.add_version("model", run_id, {LOGGED_MODEL_TAG: model_id})
    name_version(registry, model_id, version)
    found = registry.client.get_logged_model(model_id)
    assert (found.name, found.source_run_id, str(found.status)) == ("a-b-c", run_id, "READY")
    assert found.params == {"lr": "0.1"}
    assert found.tags["mlflow.modelVersions"] == '[{"name": "model", "version": "1"}]'
    [output] = registry.client.get_run(run_id).outputs.model_outputs
    assert (output.model_id, output.step) == (model_id, 7)
    described = Model.load(registry.fetch(version, tmp_path / "files") / "MLmodel")
    assert described.model_id == model_id
    assert described.signature.inputs.to_dict()[0]["tensor-spec"] == {"dtype": "float32", "shape": (-1, 3, 8)}
    assert described.signature.outputs.inputs[0].shape == (-1, 10)
    assert set(described.flavors) == {"gradtrail"}


def test_several_inputs_are_named_and_without_outputs_there_is_no_signature(registry, tmp_path):
    run_id, _ = _made(registry, inputs={"ids": torch.zeros(1, 4, dtype=torch.long), "mask": torch.zeros(1, 4) > 0})
    version = registry.add_version("model", run_id, {})
    described = Model.load(registry.fetch(version, tmp_path / "files") / "MLmodel")
    assert [(each.name, each.type.name) for each in described.signature.inputs.inputs] == [
        ("ids", "int64"),
        ("mask", "bool"),
    ]
    run_id, _ = _made(registry, inputs={}, outputs=None)
    version = registry.add_version("model", run_id, {})
    assert Model.load(registry.fetch(version, tmp_path / "more") / "MLmodel").signature is None


def test_the_model_of_a_version_is_found_whoever_registered_it(registry, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", registry.tracking_uri)
    run_id, model_id = _made(registry)
    client = registry.client
    client.create_registered_model("other")
    client.create_model_version("other", f"models:/{model_id}")
    client.copy_model_version("models:/other/1", "promoted")
    client.create_registered_model("bare")
    client.create_model_version("bare", f"runs:/{run_id}/weights")
    client.create_model_version("bare", "runs:/x/weights", tags={LOGGED_MODEL_TAG: "m-" + "0" * 32})
    found = {
        name: logged_model_of(registry, registry.resolve(name)) for name in ("other", "promoted", "bare/1", "bare")
    }
    assert found == {"other": model_id, "promoted": model_id, "bare/1": "", "bare": ""}
    client.delete_logged_model(model_id)
    assert logged_model_of(registry, registry.resolve("other")) == ""


def test_figures_of_an_audit_stand_on_the_models_page(registry):
    _, model_id = _made(registry)
    run = open_audit_run(registry, "a" * 64, "audit")
    figures = {"fidelity": 0.8, "findings_high": 2.0, "share_source/web": 0.4}
    for _ in range(2):
        publish_audit(
            registry,
            run,
            note="note",
            tags={},
            parameters={"method": "grad_dot"},
            metrics=figures,
            files=[],
            dataset=DATASET,
            logged_model=model_id,
        )
    found = registry.client.get_logged_model(model_id)
    assert {each.key: each.value for each in found.metrics} == figures
    assert {each.run_id for each in found.metrics} == {run.run_id}
    shown = registry.client.get_run(run.run_id)
    assert [each.model_id for each in shown.inputs.model_inputs] == [model_id]
    assert shown.data.metrics == figures


def test_a_data_set_says_the_same_in_every_run(registry):
    sources = []
    for uri in ("runs:/one/gradtrail/manifest.jsonl", "/home/moved/manifest.jsonl"):
        run_id = registry.start_run("train", "train")
        registry.log_dataset(run_id, DatasetVersion(DATASET.dataset_version_id, DATASET.name, 40, uri))
        [shown] = registry.client.get_run(run_id).inputs.dataset_inputs
        sources.append(shown.dataset.source)
    assert sources == ['{"manifest_sha256": "' + "d" * 64 + '"}'] * 2


def test_a_promoted_version_lies_where_it_lay_when_it_was_promoted(registry):
    client, first = registry.client, registry.start_run("train", "train")
    registry.add_version("net", first, {})
    client.copy_model_version("models:/net/1", "net-production")
    client.delete_registered_model("net")
    registry.add_version("net", registry.start_run("train", "train"), {})
    promoted = registry.resolve("net-production")
    assert promoted.source_uri == "models:/net/1"
    assert registry.location(promoted) == f"runs:/{first}/gradtrail"
    assert registry.location(registry.resolve("net")) == registry.resolve("net").source_uri


def test_values_that_mlflow_cuts_are_marked(registry):
    run_id = registry.start_run("train", "train")
    registry.client.log_param(run_id, "config", "x" * 7000)
    registry.client.log_param(run_id, "whole", "x" * 5999)
    read = registry.run(run_id).parameters
    assert read["whole"] == "x" * 5999
    assert len(read["config"]) == 6000
    assert read["config"].endswith("xxx … [cut: MLflow keeps 6,000 characters]")
    assert marked_where_cut(read["config"]) == read["config"]


@pytest.mark.parametrize("length", [7700, 7990, 8000])
def test_a_note_is_cut_in_our_words_and_never_in_those_of_people(registry, length):
    words = "p" * (length - 6)
    run_id = registry.start_run("train", "train", {NOTE: words})
    version = registry.add_version("model", run_id, {})
    links = " · ".join(f"[link {number}](https://mlflow.example/{'r' * 100})" for number in range(6))
    for _ in range(2):
        describe(registry, version, f"**gradtrail** · {links}")
        note = registry.client.get_run(run_id).data.tags[NOTE]
        assert note.startswith(words)
        assert len(note) <= 8000
        assert note.count("](") == note.count("r)")
    assert ("[link 0]" in note, "[link 5]" in note) == (length == 7700, False)
    registry.client.set_tag(run_id, NOTE, note[: len(words)] if length > 7700 else note + "\n\nGrace.")
    describe(registry, version, f"**gradtrail** · {links}")
    after = registry.client.get_run(run_id).data.tags[NOTE]
    assert after.endswith("Grace." if length == 7700 else words[-5:])


def test_a_description_keeps_below_what_every_database_takes(registry):
    version = registry.add_version("model", registry.start_run("train", "train"), {})
    client = registry.client
    client.update_registered_model("model", description="w" * 4950)
    client.update_model_version("model", "1", description="w" * 4000)
    describe_model(registry, "model", "**gradtrail** · [report](https://x)")
    describe(registry, version, "first\n" + "s" * 2000)
    assert client.get_registered_model("model").description == "w" * 4950
    described = client.get_model_version("model", "1").description
    assert described.startswith("w" * 4000)
    assert "first …" in described
    assert len(described) <= 5000


def test_a_version_behind_a_server_that_passes_artifacts_on_names_them_so_that_its_page_has_a_schema(registry):
    registry.client.create_experiment("passed on", artifact_location="mlflow-artifacts:/7")
    run_id = registry.start_run("passed on", "train")
    version = registry.add_version("model", run_id, {})
    assert version.source_uri == f"mlflow-artifacts:/7/{run_id}/artifacts/gradtrail"
    plain = registry.start_run("train", "train")
    assert registry.add_version("model", plain, {}).source_uri == f"runs:/{plain}/gradtrail"
