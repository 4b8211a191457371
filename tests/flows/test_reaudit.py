"""Auditing again: the same question has one answer, a withdrawal or another method makes it another question."""

import re

import pytest
from typer.testing import CliRunner

from gradtrail.cli import app
from gradtrail.flows.audit import audit
from gradtrail.flows.index import index
from gradtrail.flows.ingest import ingest
from gradtrail.flows.reaudit import reaudit
from gradtrail.lineage import queries
from gradtrail.lineage.withdrawals import WithdrawalRequest
from gradtrail.tasks.audit_options import AuditOptions
from gradtrail.tasks.withdrawing import withdraw_data

DOT = AuditOptions("grad_dot")


@pytest.fixture
def audited(tiny, prefect_server):
    tiny.register()
    ingest(tiny.workspace, "tiny@champion")
    index(tiny.workspace, "tiny@champion")
    tiny.drop("a.jsonl", tiny.record(1), tiny.record(2))
    return tiny, audit(tiny.workspace, "tiny@champion", DOT)


def audits(tiny):
    with tiny.workspace.ledger().read() as connection:
        return [found.audit_id for found in queries.audits(connection)]


def test_a_repeat_is_the_same_audit_and_a_withdrawal_another(audited):
    tiny, first = audited
    assert first.output_count == 2
    assert reaudit(tiny.workspace, "tiny@champion", DOT).audit_id == first.audit_id
    assert audits(tiny) == [first.audit_id]

    withdraw_data(tiny.workspace, WithdrawalRequest(attribute="source", value="left"), "the owner asked")
    again = reaudit(tiny.workspace, "tiny@champion", DOT, first.audit_id)
    assert again.audit_id != first.audit_id
    assert audits(tiny) == [first.audit_id, again.audit_id]
    with tiny.workspace.ledger().read() as connection:
        found = queries.audit_details(connection, again.audit_id).findings
    assert any("withdrawn" in finding.message for finding in found)

    other = reaudit(tiny.workspace, "tiny@champion", AuditOptions("grad_cos"))
    assert len({first.audit_id, again.audit_id, other.audit_id}) == 3
    result = CliRunner().invoke(
        app, ["report", "--compare", other.audit_id[:12], first.audit_id[:12], "--home", str(tiny.home)]
    )
    assert result.exit_code == 0, result.output
    page = tiny.workspace.reports / "comparisons" / f"{first.audit_id[:12]}-{other.audit_id[:12]}.html"
    assert str(page) in result.output
    text = page.read_text(encoding="utf-8")
    targets = re.findall(r'href="(\.\./[^"]+)"', text)
    assert targets
    assert all((page.parent / target).resolve().is_file() for target in targets)
    with tiny.workspace.ledger().read() as connection:
        [output, *_] = queries.outputs(connection, ["inbox:out-1"])
    tiny.workspace.payloads().delete(output.payload_sha256)
    partial = reaudit(tiny.workspace, "tiny@champion", AuditOptions("influence"))
    assert (partial.output_count, partial.left_out) == (1, 1)
