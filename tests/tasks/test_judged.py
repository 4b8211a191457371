"""Gates: what an audit run was given, and whether enough of it was judged to pass."""

import json
from datetime import UTC, datetime
from xml.etree import ElementTree

import pytest

from gradtrail.errors import UnjudgedError, UsageError
from gradtrail.flows.audit import AuditOutcome, OtherVersion
from gradtrail.nouns import Output
from gradtrail.tasks.collect.collecting import WaitingOutputs
from gradtrail.tasks.govern.judged import Given, unjudged_fault
from gradtrail.tasks.govern.verdicts import judge_run, require_pass, write_verdicts

REFUSED = (("row 1", "It is no output."),)


def outputs(known, *names):
    made = datetime(2026, 2, 1, tzinfo=UTC)
    known.ledger.record_outputs([Output(f"inbox:{name}", "inbox", name, made, "digits/1", "a" * 64) for name in names])
    return [f"inbox:{name}" for name in names]


@pytest.mark.parametrize(
    "outcome",
    [
        AuditOutcome("digits/1", left_out=20),
        AuditOutcome("digits/1", refused=REFUSED),
        AuditOutcome("digits/1", waits=(WaitingOutputs("digits/1", 5, ingested=False),)),
        AuditOutcome("digits/1", sampled_out=9),
        AuditOutcome("digits/1", others=(OtherVersion("digits/2", (), 0, "It has no index.", left_out=3),)),
        AuditOutcome("digits/1", "a" * 64, "r", output_count=9, left_out=1),
    ],
    ids=["measuring", "reading", "waiting", "sampled", "another version", "one of ten"],
)
def test_a_gate_that_was_given_what_it_could_not_judge_fails_and_says_what(outcome):
    fault = unjudged_fault(outcome.given)
    assert isinstance(fault, UnjudgedError)
    assert fault.exit_code == 4
    number = outcome.given.left or outcome.sampled_out
    assert f"{number} " in fault.what


def test_a_stated_share_may_be_left_out_but_never_all():
    some = Given(9, {"refused": 1})
    assert unjudged_fault(some, 0.1) is None
    assert unjudged_fault(some, 0.09) is not None
    assert unjudged_fault(Given(0, {"refused": 1}), 1.0) is not None
    assert unjudged_fault(Given(9, {}, sampled_out=1000)) is None
    assert unjudged_fault(Given()) is None
    with pytest.raises(UsageError, match="2 is no share"):
        unjudged_fault(some, 2)


def test_fewer_outputs_than_expected_fail_a_gate():
    assert "0 outputs were judged, where at least 1 were expected" in str(unjudged_fault(Given(), least_outputs=1))
    assert unjudged_fault(Given(5), least_outputs=6) is not None
    assert unjudged_fault(Given(6), least_outputs=6) is None


def test_a_second_try_does_not_pass_because_what_was_refused_is_not_new(known):
    nothing_new = AuditOutcome("digits/1")
    assert judge_run(known.workspace, nothing_new, "emitted").fault is None
    [refused] = outputs(known, "a")
    known.ledger.record_quarantine("measuring", refused, "It is no class.")
    known.ledger.record_quarantine("day.jsonl", "row 2", "It is no output.")
    verdict = judge_run(known.workspace, nothing_new, "emitted", 1.0)
    assert "2 of 2 outputs could not be judged" in verdict.fault.what
    assert judge_run(known.workspace, nothing_new, "label").given.unjudged == {"refused when they were read": 1}

    good = outputs(known, "b", "c")
    known.report(*good)
    verdict = judge_run(known.workspace, nothing_new, "emitted")
    assert (verdict.given.judged, verdict.given.left) == (2, 2), "of the same run"
    assert judge_run(known.workspace, nothing_new, "emitted", 0.5).fault is None

    known.report(*outputs(known, "d"))
    assert judge_run(known.workspace, nothing_new, "emitted").fault is None, "an older run's refusals are past"
    known.ledger.record_quarantine("day.jsonl", "row 3", "It is no output.")
    assert judge_run(known.workspace, nothing_new, "emitted", 1.0).fault is not None


def test_a_failed_gate_stands_in_the_test_results(known, tmp_path):
    verdict = judge_run(known.workspace, AuditOutcome("digits/1", left_out=20), "emitted")
    write_verdicts(verdict, "high", tmp_path / "found.xml")
    [suite] = ElementTree.parse(tmp_path / "found.xml").getroot()  # noqa: S314 - our own file
    assert (suite.get("failures"), suite[0].get("name")) == ("1", "outputs-judged")
    said = json.loads((tmp_path / "found.json").read_text())
    assert (said["failures"], said["outputs"]["judged"]) == (1, 0)
    assert sum(said["outputs"]["unjudged"].values()) == 20
    with pytest.raises(UnjudgedError, match="20 of 20 outputs could not be judged"):
        require_pass(verdict.audits, "high", verdict.fault)
