"""What happens to outputs that are late, twice there, labelled, hostile or unusable."""

import pytest
from prefect import flow
from prefect.context import FlowRunContext

from gradtrail.errors import NotFoundError, UnjudgedError
from gradtrail.flows import examining
from gradtrail.flows.audit import audit
from gradtrail.flows.index import index
from gradtrail.flows.ingest import ingest
from gradtrail.lineage.read import queries
from gradtrail.tasks.audit.options import AuditOptions
from gradtrail.tasks.calibrated import resolve_audit
from gradtrail.tasks.collecting import collect_outputs, pending_outputs
from gradtrail.tasks.govern.verdicts import audit_verdicts


def _covered(tiny):
    with tiny.workspace.ledger().read() as connection:
        return [sorted(output_id for output_id, _ in each.outputs) for each in queries.audits(connection, "tiny/1")]


def test_an_audit_before_the_index_says_how_to_build_it(ingested):
    with pytest.raises(NotFoundError, match="gradtrail index tiny/1"):
        audit(ingested.workspace, "tiny@champion")


def test_a_record_without_needed_fields_is_quarantined_and_counted_in_the_report(indexed):
    indexed.drop("a.jsonl", indexed.record(1), indexed.record(2, prediction=None), indexed.record(3, inputs=None))
    outcome = audit(indexed.workspace, "tiny@champion")
    assert _covered(indexed) == [["inbox:out-1"]]
    assert [record_id for record_id, _ in outcome.refused] == ["out-2"]
    assert "'prediction'" in outcome.refused[0][1]
    assert outcome.left_out == 1
    assert (outcome.given.judged, outcome.given.left) == (1, 2)
    assert len(indexed.report(outcome.audit_id)["trust"]["quarantined_outputs"]) == 2
    again = audit(indexed.workspace, "tiny@champion")
    assert (again.audit_id, again.refused, again.left_out, again.refused_before) == ("", (), 0, 1)
    with pytest.raises(UnjudgedError, match="2 of 3 outputs could not be judged"):
        audit(indexed.workspace, "tiny@champion", most_unjudged=0.5)


def test_an_output_delivered_twice_is_audited_once_and_other_content_is_refused(indexed):
    indexed.drop("a.jsonl", indexed.record(1))
    indexed.record_audit()
    indexed.drop("b.jsonl", indexed.record(1), indexed.record(1, prediction=2, note="changed"), indexed.record(4))
    assert len(collect_outputs.fn(indexed.workspace).refused) == 1
    indexed.record_audit()
    assert _covered(indexed) == [["inbox:out-1"], ["inbox:out-4"]]


def test_outputs_of_a_version_that_was_never_ingested_wait_in_the_inbox(indexed):
    indexed.register()
    indexed.drop("a.jsonl", indexed.record(1), indexed.record(2, version=2))
    indexed.record_audit()
    assert _covered(indexed) == [["inbox:out-1"]]
    ingest(indexed.workspace, "tiny/2")
    index(indexed.workspace, "tiny/2")
    assert audit(indexed.workspace, "tiny/2").output_count == 1


def test_labels_make_an_audit_of_their_own(indexed):
    said = indexed.record(1)["prediction"]
    wrong = 1 if said == 0 else 0
    indexed.drop("a.jsonl", indexed.record(1, label=wrong), indexed.record(2))
    labelled = audit(indexed.workspace, "tiny@champion", AuditOptions(target="label"))
    emitted = indexed.record_audit(report=True)
    assert (labelled.output_count, labelled.left_out) == (1, 1)
    assert _covered(indexed) == [["inbox:out-1"], ["inbox:out-1", "inbox:out-2"]]
    assert indexed.recorded(labelled.audit_id).audit.outputs == (("inbox:out-1", "label"),)
    for audit_id in (emitted, labelled.audit_id):
        outputs = indexed.report(audit_id)["outputs"]
        output = next(each for each in outputs if each["output"]["output_id"] == "inbox:out-1")
        assert (output["result"]["prediction"], output["true_label"]) == (str(said), str(wrong))
        assert (output["wrong"], output["result"]["reproduced"]) == (True, True)


def test_an_output_the_checkpoint_does_not_reproduce_is_a_finding(indexed):
    other = (indexed.record(1)["prediction"] + 1) % 3
    indexed.drop("a.jsonl", indexed.record(1, prediction=other))
    details = indexed.recorded(indexed.record_audit())
    assert not details.results[0].reproduced
    assert any(finding.rule == "output-not-reproduced" for finding in details.findings)


_REGRESSION = """

class Adapter(gradtrail.RegressionAdapter):
    def build_model(self):
        return nn.Linear(4, 1)

    training_data = Adapter.training_data
"""


def test_a_number_is_not_judged_and_its_report_speaks_of_the_number(tiny, prefect_server):
    module = tiny.folder / f"{tiny.module}.py"
    module.write_text(module.read_text() + _REGRESSION)
    tiny.register()
    ingest(tiny.workspace, "tiny@champion")
    index(tiny.workspace, "tiny@champion")
    tiny.drop("a.jsonl", tiny.record(1, label=0.25))
    audit_id = tiny.record_audit(report=True)
    [output] = tiny.report(audit_id)["outputs"]
    assert (output["true_label"], output["wrong"]) == ("0.25", None)
    page = (tiny.workspace.reports / audit_id / "report.html").read_text()
    assert "training on them raises this prediction" in page
    assert "lowers the loss of this output" not in page


def test_a_method_that_is_asked_for_audits_and_is_named_in_the_report(indexed):
    for number, method in enumerate(("grad_dot", "grad_cos", "influence")):
        indexed.drop(f"{method}.jsonl", indexed.record(number))
        audit_id = indexed.record_audit(method=method, report=True)
        assert indexed.recorded(audit_id).audit.method == method
        assert indexed.report(audit_id)["audit"]["method"] == method


@pytest.mark.browser
def test_script_tags_in_ids_and_attributes_are_shown_as_text(tiny, prefect_server, browser):
    hostile = "<script>document.title='owned'</script>"
    tiny.rows = [{**row, "id": f"{row['id']}{hostile}", "attributes": {"source": hostile}} for row in tiny.rows]
    tiny.write()
    tiny.register()
    ingest(tiny.workspace, "tiny@champion")
    index(tiny.workspace, "tiny@champion")
    tiny.drop("a.jsonl", tiny.record(1, record_id=hostile))
    audit_id = tiny.record_audit(report=True)
    browser.get_log("browser")
    browser.get((tiny.workspace.reports / audit_id / "report.html").as_uri())
    assert browser.title != "owned"
    assert browser.execute_script("return document.querySelectorAll('script').length") == 0
    assert "<script>" in browser.find_element("tag name", "body").text
    assert not browser.get_log("browser")


def test_an_example_with_a_nan_loss_is_quarantined_by_name_and_reported(tiny, prefect_server):
    tiny.rows[5]["inputs"][0] = float("nan")
    tiny.write()
    tiny.register()
    ingest(tiny.workspace, "tiny@champion")
    [outcome] = index(tiny.workspace, "tiny@champion")
    assert outcome.quarantined == 1
    with tiny.workspace.ledger().read() as connection:
        coverage = queries.index(connection, outcome.index_id).coverage
    assert list(coverage.quarantined) == ["row-5"]
    assert coverage.example_share == pytest.approx(39 / 40)
    tiny.drop("a.jsonl", tiny.record(1))
    report = tiny.report(tiny.record_audit(report=True))
    assert "quarantined" in " ".join(report["trust"]["left_out"])


@flow
def notes_of_a_run(workspace):
    """How many results of tasks Prefect keeps a note of when everything that waits is audited."""
    collect_outputs(workspace)
    pending = pending_outputs(workspace, "tiny/1", "emitted").output_ids
    examined = examining.examine(workspace, "tiny/1", pending, resolve_audit(workspace, "tiny/1", AuditOptions()))
    return examined, len(FlowRunContext.get().run_results)


def test_outputs_beyond_one_audit_make_several_and_prefect_keeps_no_note_of_each(indexed, monkeypatch):
    indexed.drop("few.jsonl", indexed.record(0))
    one, notes_of_one = notes_of_a_run(indexed.workspace)
    indexed.drop("many.jsonl", *(indexed.record(number) for number in range(1, 31)))
    thirty, notes_of_thirty = notes_of_a_run(indexed.workspace)
    assert (one.output_count, thirty.output_count) == (1, 30)
    assert notes_of_thirty < notes_of_one + 10
    monkeypatch.setattr(examining, "MOST_OUTPUTS", 2)
    indexed.drop("more.jsonl", *(indexed.record(number) for number in range(31, 34)))
    examined, _ = notes_of_a_run(indexed.workspace)
    assert (examined.output_count, len(examined.earlier)) == (3, 1)
    assert [len(covered) for covered in _covered(indexed)][-2:] == [2, 1]
    tried_again = audit_verdicts(indexed.workspace, "tiny/1", ())
    assert tuple(each.audit_id for each in tried_again) == examined.audit_ids
