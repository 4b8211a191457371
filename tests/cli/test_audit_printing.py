"""What `gradtrail audit` says of outputs that it did not audit, and of more audits than one."""

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from gradtrail.commands.audits_printing import show_audit
from gradtrail.errors import FindingsError
from gradtrail.flows.audit import AuditOutcome
from gradtrail.nouns import Finding
from gradtrail.reports.verdicts import AuditVerdict
from gradtrail.tasks.collect.collecting import WaitingOutputs
from gradtrail.tasks.govern.verdicts import require_pass


def test_outputs_that_wait_or_were_sampled_out_and_earlier_portions_are_told(capsys):
    outcome = AuditOutcome(
        "digits/3",
        "a" * 64,
        "/reports/a/report.html",
        1500,
        waits=(WaitingOutputs("digits/2", 20, ingested=False), WaitingOutputs("digits/3", 5, ingested=True)),
        sampled_out=3000,
        earlier=("b" * 64,),
    )
    show_audit(outcome, as_json=False)
    said = capsys.readouterr().out
    assert "3,000 new outputs were sampled out by their source." in said
    assert (
        "20 outputs of digits/2 wait for a later run: that version is not ingested. Next: gradtrail ingest dig" in said
    )
    assert "5 outputs of digits/3 wait for a later run: this run has recorded as many as its source may" in said
    assert "Audit bbbbbbbbbbbb covers an earlier portion of the outputs." in said
    assert "Audited 1,500 outputs of digits/3 (audit aaaaaaaaaaaa)." in said


def test_one_is_not_many(capsys):
    show_audit(
        AuditOutcome(
            "a/1", "a" * 64, "r", 1, waits=(WaitingOutputs("a/1", 1, ingested=True),), sampled_out=1, left_out=1
        ),
        as_json=False,
    )
    said = capsys.readouterr().out
    assert "1 pending output was not audited: " in said
    assert "1 new output was sampled out by" in said
    assert "1 output of a/1 waits for a later run: " in said
    assert "Audited 1 output of a/1" in said
    finding = Finding("rule", "high", "why.")
    audit = AuditVerdict("b" * 64, "a/1", datetime(2026, 1, 1, tzinfo=UTC), ("rule",), (finding,))
    with pytest.raises(FindingsError, match="has 1 finding of severity high or higher"):
        require_pass([audit], "high")
    with pytest.raises(FindingsError, match="has 2 findings of severity high or higher"):
        require_pass([replace(audit, findings=(finding, finding))], "high")


def test_a_run_that_audited_all_there_was_says_nothing_of_what_waits(capsys):
    show_audit(AuditOutcome("digits/3"), as_json=False)
    assert capsys.readouterr().out == "Nothing new: every output of digits/3 in the inbox has been audited.\n"


@pytest.mark.parametrize(
    ("outcome", "said"),
    [
        (
            AuditOutcome("m/1", left_out=20),
            "No output of m/1 was audited. 20 of 20 outputs could not be judged: 20 ref",
        ),
        (
            AuditOutcome("m/1", refused=(("r1", "no."),)),
            "1 of 1 output could not be judged: 1 refused when they were r",
        ),
        (AuditOutcome("m/1", sampled_out=7), "No output of m/1 was audited. 7 outputs were left out by sampling."),
        (AuditOutcome("m/1", refused_before=3), "Nothing new. 3 outputs of m/1 have no audit: refused when measured"),
    ],
)
def test_a_run_that_audited_nothing_does_not_say_that_all_was_audited(outcome, said, capsys):
    show_audit(outcome, as_json=False)
    printed = capsys.readouterr().out
    assert said in printed
    assert "has been audited" not in printed
