"""Links into MLflow, and descriptions that people and gradtrail share."""

import pytest

from gradtrail.storage.audit_runs import Links, describe, markdown_text, open_audit_run
from gradtrail.storage.registry import Registry


@pytest.fixture
def registry(tmp_path, migrated_mlflow):
    database = tmp_path / "mlflow.db"
    database.write_bytes(migrated_mlflow.read_bytes())
    return Registry(f"sqlite:///{database}", str(tmp_path / "artifacts"))


def test_links_encode_every_part():
    links = Links("https://mlflow.example")
    assert links.model_version("a/b c", 3) == "https://mlflow.example/#/models/a%2Fb%20c/versions/3"
    assert links.artifact("1", "r", "x/y.html") == "https://mlflow.example/#/experiments/1/runs/r/artifacts/x%2Fy.html"


def test_an_audit_has_one_run_however_often_it_is_opened(registry):
    first = open_audit_run(registry, "a" * 64, "audit")
    assert open_audit_run(registry, "a" * 64, "audit") == first
    assert open_audit_run(registry, "b" * 64, "audit") != first


def test_a_section_replaces_only_itself_in_what_people_wrote(registry):
    run_id = registry.start_run("train", "train", {"mlflow.note.content": "A note by Ada."})
    version = registry.add_version("model", run_id, {})
    registry.client.update_model_version("model", "1", description="Written by Ada.")
    describe(registry, version, "first audit")
    described = registry.client.get_model_version("model", "1").description
    registry.client.update_model_version("model", "1", description=described + "\n\nAnd by Grace.")
    describe(registry, version, "second audit")
    described = registry.client.get_model_version("model", "1").description
    assert described.startswith("Written by Ada.")
    assert described.endswith("And by Grace.")
    assert "second audit" in described
    assert "first audit" not in described
    note = registry.client.get_run(run_id).data.tags["mlflow.note.content"]
    assert note.startswith("A note by Ada.")
    assert note.count("second audit") == 1


def test_text_from_data_cannot_become_markdown():
    assert markdown_text("[x](http://evil) <b>*") == r"\[x\](http://evil) \<b\>\*"
