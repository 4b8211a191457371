"""What one bad output, example, run or version would hold up, and must not."""

import pytest

from gradtrail.errors import ModelError, NotReadyError, StoreError
from gradtrail.flows.audit import audit
from gradtrail.flows.index import index
from gradtrail.flows.ingest import ingest
from gradtrail.lineage.read import queries
from gradtrail.tasks.audit.options import AuditOptions
from gradtrail.tasks.collecting import collect_outputs
from gradtrail.tasks.core.measured_outputs import MEASURING
from gradtrail.tasks.govern.verdicts import audit_verdicts

pytestmark = pytest.mark.ci  # whole flows, one after the other

MODEL = "tiny@champion"


def _indexed(tiny):
    tiny.register()
    ingest(tiny.workspace, MODEL)
    index(tiny.workspace, MODEL)
    return tiny


def _newest(tiny):
    with tiny.workspace.ledger().read() as connection:
        return queries.latest_audit(connection, "tiny/1")


def _quarantined(tiny, target):
    with tiny.workspace.ledger().read() as connection:
        return {each.record_id: each.cause for each in queries.quarantined(connection, MEASURING[target])}


def test_a_label_that_is_none_a_missing_source_and_a_deleted_run_hold_up_no_report(tiny, prefect_server):
    tiny.rows[0]["attributes"] = {"licence": "CC0-1.0"}
    tiny.rows[1]["attributes"]["source"] = ".."
    tiny.write()
    _indexed(tiny)
    registry = tiny.workspace.registry()
    registry.client.delete_run(registry.resolve(MODEL).run_id)
    tiny.drop("a.jsonl", tiny.record(1, label="unknown"), tiny.record(2, label=1), tiny.record(3, label="inf"))
    outcome = audit(tiny.workspace, MODEL)
    shown = {each["output"]["output_id"]: each["true_label"] for each in tiny.report(outcome.audit_id)["outputs"]}
    assert shown == {"inbox:out-1": None, "inbox:out-2": "1", "inbox:out-3": None}
    assert registry.resolve(MODEL).tags["gradtrail.latest_audit"] == outcome.audit_id


def test_a_bad_label_keeps_an_output_from_audits_of_labels_only(indexed):
    indexed.drop("a.jsonl", indexed.record(1, label="unknown"), indexed.record(2, label=1))
    assert len(indexed.recorded(indexed.record_audit(target="label")).results) == 1
    assert list(_quarantined(indexed, "label")) == ["inbox:out-1"]
    assert len(indexed.recorded(indexed.record_audit()).results) == 2
    assert _quarantined(indexed, "emitted") == {}


def test_inputs_that_the_model_cannot_take_are_quarantined_and_the_rest_is_audited(indexed):
    wrong = indexed.record(2)
    indexed.drop("a.jsonl", indexed.record(1), {**wrong, "inputs": [*wrong["inputs"], 0.5]}, indexed.record(3))
    outcome = audit(indexed.workspace, MODEL)
    assert (outcome.output_count, outcome.left_out) == (2, 1)
    [(output_id, cause)] = _quarantined(indexed, "emitted").items()
    assert output_id == "inbox:out-2"
    assert "Error" in cause
    assert audit(indexed.workspace, MODEL).left_out == 0


FAILING = """
    def losses(self, outputs, batch):
        if Path(__file__).with_suffix(".broken").exists():
            raise RuntimeError("this machine is broken")
        return super().losses(outputs, batch)
"""


def test_a_model_that_fails_over_training_data_too_quarantines_no_output(tiny, prefect_server):
    module = tiny.folder / f"{tiny.module}.py"
    module.write_text(module.read_text() + FAILING)
    _indexed(tiny)
    tiny.drop("a.jsonl", tiny.record(1))
    module.with_suffix(".broken").touch()
    with pytest.raises(ModelError, match=r"losses fails over example .*this machine is broken"):
        audit(tiny.workspace, MODEL)
    assert _quarantined(tiny, "emitted") == {}
    module.with_suffix(".broken").unlink()
    assert tiny.record_audit()


NEEDING = """
    def collate(self, examples):
        if examples[0].example_id == "inbox:out-2" and not Path(__file__).with_suffix(".library").exists():
            raise ImportError("no library for this one")
        return super().collate(examples)
"""


def test_what_was_quarantined_is_audited_once_its_cause_is_gone_and_it_is_asked_for(tiny, prefect_server):
    module = tiny.folder / f"{tiny.module}.py"
    module.write_text(module.read_text() + NEEDING)
    _indexed(tiny)
    tiny.drop("a.jsonl", tiny.record(2))
    assert tiny.record_audit(retry_refused=True) == ""
    assert list(_quarantined(tiny, "emitted")) == ["inbox:out-2"]
    module.with_suffix(".library").touch()
    assert audit(tiny.workspace, MODEL).left_out == 0
    assert _newest(tiny) is None
    outcome = audit(tiny.workspace, MODEL, retry_refused=True)
    assert (outcome.output_count, outcome.left_out) == (1, 0)
    assert tiny.report(outcome.audit_id)["trust"]["quarantined_outputs"] == {}
    assert tiny.record_audit(retry_refused=True) == ""


def test_a_payload_that_the_disk_does_not_give_is_tried_again(indexed):
    indexed.drop("a.jsonl", indexed.record(1), indexed.record(2))
    collect_outputs.fn(indexed.workspace)
    with indexed.workspace.ledger().read() as connection:
        [output] = queries.outputs(connection, ["inbox:out-2"])
    [path] = (indexed.home / "payloads").rglob(f"{output.payload_sha256}*")
    kept = path.read_bytes()
    path.unlink()
    path.mkdir()
    with pytest.raises(StoreError, match="Not done: inbox:out-2"):
        audit(indexed.workspace, MODEL)
    assert _quarantined(indexed, "emitted") == {}
    path.rmdir()
    path.write_bytes(kept)
    assert audit(indexed.workspace, MODEL).output_count == 1


def test_a_report_that_cannot_be_finished_holds_up_no_later_output(indexed):
    indexed.drop("a.jsonl", indexed.record(1))
    blocked = indexed.workspace.reports
    blocked.write_text("in the way of every report")
    with pytest.raises(OSError, match="reports"):
        audit(indexed.workspace, MODEL)
    blocked.unlink()
    blocked.mkdir()
    first = _newest(indexed).audit_id
    (blocked / first).write_text("in the way of this report")
    indexed.drop("b.jsonl", indexed.record(2))
    with pytest.raises(StoreError, match=f"Not done: audit {first[:12]}"):
        audit(indexed.workspace, MODEL)
    newest = _newest(indexed)
    assert [output_id for output_id, _ in newest.outputs] == ["inbox:out-2"]
    assert (blocked / newest.audit_id / "report.html").is_file()
    (blocked / first).unlink()
    assert audit(indexed.workspace, MODEL).finished == (first,)


def test_what_could_not_be_published_is_by_the_next_run_and_nothing_is_published_twice(indexed):
    ledger = indexed.workspace.ledger()
    assert ledger.record_quarantine("inbox", "late", "recorded by a run that found no room for the snapshot")
    with ledger.read() as connection:
        assert not ledger.is_published(connection)
    audit(indexed.workspace, MODEL)
    with ledger.read() as connection:
        assert ledger.is_published(connection)
    published = ledger.paths.snapshot.stat().st_ino
    audit(indexed.workspace, MODEL)
    assert ledger.paths.snapshot.stat().st_ino == published


def test_outputs_of_the_version_before_are_audited_after_the_alias_moved(indexed):
    indexed.register()
    ingest(indexed.workspace, MODEL)
    indexed.drop("a.jsonl", indexed.record(1), indexed.record(2), indexed.record(3, version=2))
    outcome = audit(indexed.workspace, MODEL)
    assert (outcome.model_version_id, outcome.output_count) == ("tiny/2", 1)
    [other] = outcome.others
    assert (other.model_version_id, other.output_count, other.refusal) == ("tiny/1", 2, "")
    assert set(outcome.made) == {outcome.audit_id, *other.audit_ids}
    assert {each.model_version_id for each in audit_verdicts(indexed.workspace, "tiny/2", outcome.made)} == {
        "tiny/1",
        "tiny/2",
    }
    assert audit(indexed.workspace, MODEL).others == ()


def test_a_version_that_is_not_ready_or_cannot_be_audited_holds_up_no_other_version(indexed):
    indexed.drop("a.jsonl", indexed.record(1))
    indexed.register()
    with pytest.raises(NotReadyError, match=r"tiny/2 is not in the ledger\. Take it in first: gradtrail ingest"):
        audit(indexed.workspace, MODEL)
    assert _audited(indexed, "tiny/1") == ["inbox:out-1"]
    ingest(indexed.workspace, MODEL)
    indexed.drop("b.jsonl", indexed.record(2), indexed.record(3, version=2))
    with pytest.raises(NotReadyError, match="no index with eigen projection"):
        audit(indexed.workspace, MODEL, AuditOptions(method="ekfac"))
    audit(indexed.workspace, MODEL)
    assert _audited(indexed, "tiny/1") == ["inbox:out-1", "inbox:out-2"]
    assert _audited(indexed, "tiny/2") == ["inbox:out-3"]


def _audited(tiny, model_version_id):
    with tiny.workspace.ledger().read() as connection:
        audits = queries.audits(connection, model_version_id)
    return sorted(output_id for each in audits for output_id, _ in each.outputs)


def test_outputs_of_a_version_that_was_deleted_in_mlflow_are_audited_and_reported(indexed):
    indexed.register()
    ingest(indexed.workspace, MODEL)
    indexed.drop("a.jsonl", indexed.record(1))
    client = indexed.workspace.registry().client
    client.delete_model_version("tiny", "1")
    [other] = audit(indexed.workspace, MODEL).others
    assert (other.model_version_id, other.output_count, other.refusal) == ("tiny/1", 1, "")
    assert indexed.report(*other.audit_ids)["outputs"][0]["output"]["output_id"] == "inbox:out-1"
    assert other.audit_ids[0][:12] in client.get_registered_model("tiny").description
    assert audit(indexed.workspace, MODEL).made == ()


def test_another_version_that_cannot_be_audited_is_named_and_one_given_by_number_is_alone(indexed):
    indexed.register()
    ingest(indexed.workspace, MODEL)
    indexed.drop("a.jsonl", indexed.record(1), indexed.record(2, version=2))
    outcome = audit(indexed.workspace, "tiny/1")
    assert (outcome.output_count, outcome.others) == (1, ())
    index(indexed.workspace, MODEL)
    indexed.drop("b.jsonl", indexed.record(3))
    (indexed.folder / f"{indexed.module}.py").write_text(
        "# changed\n" + (indexed.folder / f"{indexed.module}.py").read_text()
    )
    [other] = _after_the_adapter_changed(indexed)
    assert other.model_version_id == "tiny/1"
    assert "adapter" in other.refusal


def _after_the_adapter_changed(tiny):
    tiny.register()
    ingest(tiny.workspace, MODEL)
    index(tiny.workspace, MODEL)
    return [each for each in audit(tiny.workspace, MODEL).others if each.model_version_id == "tiny/1"]


def test_another_version_that_fails_in_an_unforeseen_way_is_named_after_all_else_is_done(indexed):
    indexed.register()
    ingest(indexed.workspace, MODEL)
    indexed.drop("a.jsonl", indexed.record(1), indexed.record(2, version=2))
    locked = indexed.workspace.audit_lock("tiny/1")
    locked.mkdir(parents=True)
    with pytest.raises(StoreError, match="Not done: tiny/1: IsADirectoryError"):
        audit(indexed.workspace, MODEL)
    assert _audited(indexed, "tiny/2") == ["inbox:out-2"]
    locked.rmdir()
    [other] = audit(indexed.workspace, MODEL).others
    assert (other.model_version_id, other.output_count) == ("tiny/1", 1)
