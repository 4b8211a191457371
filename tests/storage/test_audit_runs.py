"""Links into MLflow, and descriptions that people and gradtrail share."""

from datetime import UTC, datetime

import pytest

from gradtrail.addresses import output_anchor
from gradtrail.errors import StoreError
from gradtrail.storage.models.audit_runs import (
    AuditRun,
    Links,
    describe,
    describe_model,
    log_point,
    logged_steps,
    markdown_text,
    open_audit_run,
    open_trend_run,
)
from gradtrail.storage.models.registry import Registry


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


def test_a_deleted_experiment_is_named_with_how_to_restore_it(registry):
    first = open_audit_run(registry, "a" * 64, "audit")
    registry.client.delete_experiment(first.experiment_id)
    remedy = f"mlflow experiments restore --experiment-id {first.experiment_id};"
    with pytest.raises(StoreError, match=f"'gradtrail audits' was deleted.*{remedy}"):
        open_audit_run(registry, "a" * 64, "audit")
    registry.client.restore_experiment(first.experiment_id)
    assert open_audit_run(registry, "a" * 64, "audit") == first


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


def test_links_lead_to_served_reports_and_to_an_outputs_own_section():
    run = AuditRun("r", "1")
    served = Links("https://mlflow.example", "https://reports.example/all")
    section = served.output("a" * 64, "inbox:scan 7", run)
    assert section == f"https://reports.example/all/{'a' * 64}/report.html#{output_anchor('inbox:scan 7')}"
    assert served.index(run) == "https://reports.example/all/index.html"
    inside = Links("https://mlflow.example")
    assert inside.report("a" * 64, run) == "https://mlflow.example/#/experiments/1/runs/r/artifacts/report.html"
    assert inside.output("a" * 64, "inbox:scan 7", run) == inside.report("a" * 64, run)
    assert inside.metrics(run).endswith("/runs/r/model-metrics")


def test_a_model_has_one_trend_run_whatever_its_name(registry):
    names = ["plain", 'it\'s "quoted"', "50% `off`"]
    runs = [open_trend_run(registry, name) for name in names]
    assert [open_trend_run(registry, name) for name in names] == runs
    assert len({run.run_id for run in runs}) == len(names)


def test_a_point_is_kept_once_however_often_it_is_logged(registry):
    run = open_trend_run(registry, "model")
    figures = {f"share_source/{i}": 0.001 for i in range(1500)} | {"outputs": 4.0}
    moment = datetime(2026, 3, 1, 6, tzinfo=UTC)
    for _ in range(2):
        log_point(registry, run, figures, 1, moment)
    points = registry.client.get_metric_history(run.run_id, "outputs")
    assert [(point.step, point.value, point.timestamp) for point in points] == [(1, 4.0, moment.timestamp() * 1000)]
    assert logged_steps(registry, run, "share_source/0") == {1}


def test_a_registered_models_description_keeps_what_people_wrote(registry):
    run_id = registry.start_run("train", "train")
    registry.add_version("model", run_id, {})
    registry.client.update_registered_model("model", description="Written by Ada.")
    describe_model(registry, "model", "first audit")
    described = registry.client.get_registered_model("model").description
    registry.client.update_registered_model("model", description=described + "\n\nAnd by Grace.")
    describe_model(registry, "model", "second audit")
    described = registry.client.get_registered_model("model").description
    assert described.startswith("Written by Ada.")
    assert described.endswith("And by Grace.")
    assert "second audit" in described
    assert "first audit" not in described


def test_a_section_whose_end_somebody_deleted_takes_no_words_with_it(registry):
    registry.add_version("model", registry.start_run("train", "train"), {})
    describe_model(registry, "model", "first audit")
    described = registry.client.get_registered_model("model").description
    cut = described.replace("[//]: # (gradtrail: end)", "Grace wrote on.")
    registry.client.update_registered_model("model", description=cut)
    describe_model(registry, "model", "second audit")
    described = registry.client.get_registered_model("model").description
    assert "Grace wrote on." in described
    assert "second audit" in described
