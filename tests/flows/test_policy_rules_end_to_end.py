"""Rules that ask for more than the scores: copies, near-copies, self-influence and drift, from end to end."""

import json
from dataclasses import replace
from pathlib import Path

from gradtrail.flows.audit import audit
from gradtrail.lineage.read import queries
from gradtrail.lineage.sql.answering import run_sql
from gradtrail.tasks.audit.options import AuditOptions

POLICY = """
[rules.copies]
kind = "copies_of_output"
severity = "high"

[rules.dominates]
kind = "one_example_dominates"
severity = "medium"
limit = 0.0
near_copies = 0.5

[rules.learnt-by-heart]
kind = "suspect_labels"
severity = "low"
measure = "self_influence"
limit = 0.5

[rules.drift]
kind = "share_drift"
severity = "low"
attribute = "source"
tolerance = "interval"
limit = 0.0
least_change = 0.0
"""


def _findings(workspace, audit_id, kind):
    with workspace.ledger().read() as connection:
        details = queries.audit_details(connection, audit_id)
    return details, [finding for finding in details.findings if finding.evidence["kind"] == kind]


def test_copies_and_drift_are_found_and_a_repeat_is_held_against_the_same_history(indexed):
    tiny = indexed
    policy = tiny.folder / "policy.toml"
    policy.write_text(POLICY)
    workspace = replace(tiny.workspace, policy=str(policy))
    options = AuditOptions(method="grad_dot")
    tiny.drop(
        "a.jsonl", tiny.record(1), tiny.record(2, inputs=tiny.rows[7]["inputs"], prediction=tiny.rows[7]["label"])
    )
    first = audit(workspace, "tiny@champion", options)

    details, copies = _findings(workspace, first.audit_id, "copies_of_output")
    [copied] = [finding for finding in copies if finding.output_id.endswith("out-2")]
    assert "row-7" in copied.evidence["same_inputs"]
    assert copied.evidence["cosines"]["row-7"] == 1.0
    assert "history_sha256" not in details.audit.parameters
    assert len(_findings(workspace, first.audit_id, "one_example_dominates")[1]) == 2
    [learnt] = _findings(workspace, first.audit_id, "suspect_labels")[1]
    assert learnt.evidence["multiples"] == sorted(learnt.evidence["multiples"], reverse=True)
    assert _findings(workspace, first.audit_id, "share_drift")[1] == []

    tiny.drop("b.jsonl", tiny.record(3))
    second = audit(workspace, "tiny@champion", options)
    details, drifts = _findings(workspace, second.audit_id, "share_drift")
    assert "history_sha256" in details.audit.parameters
    assert {finding.evidence["value"] for finding in drifts} == {"left", "right"}
    assert drifts[0].evidence["earlier_audits"] == [first.audit_id]

    report = json.loads(Path(second.report).with_name("report.json").read_text())
    assert len(report["findings"]) == len(details.findings)
    for finding in report["findings"]:
        assert run_sql(workspace.snapshot, finding["sql"]).num_rows > 0, finding["sql"]
