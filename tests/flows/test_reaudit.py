"""Auditing again: the same question has one answer, a withdrawal or another method makes it another question."""

import json
import re
import shutil
from pathlib import Path

import pytest
import typer
from prefect.settings import PREFECT_API_URL
from typer.testing import CliRunner

from gradtrail.cli import app
from gradtrail.errors import GradtrailError, NotFoundError
from gradtrail.flows.audit import audit
from gradtrail.flows.index import index
from gradtrail.flows.reaudit import reaudit
from gradtrail.lineage.events.withdrawals import WithdrawalRequest
from gradtrail.lineage.read import queries
from gradtrail.tasks.audit.options import AuditOptions
from gradtrail.tasks.govern.verifying import verify_workspace
from gradtrail.tasks.govern.withdrawing import withdraw_data
from gradtrail.tasks.index.options import IndexOptions

pytestmark = pytest.mark.ci  # whole flows, one after the other

DOT = AuditOptions("grad_dot")


@pytest.fixture
def audited(indexed):
    indexed.drop("a.jsonl", indexed.record(1), indexed.record(2))
    return indexed, audit(indexed.workspace, "tiny@champion", DOT)


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


def test_reaudit_takes_every_option_that_says_how_an_audit_scores():
    options = {
        name: {option.name: (option.opts, option.default, option.help) for option in command.params}
        for name, command in typer.main.get_command(app).commands.items()
        if name in ("audit", "reaudit")
    }
    for only_of_audit in ("fail_on", "junit", "retry_refused", "most_unjudged", "least_outputs"):
        options["audit"].pop(only_of_audit)
    options["reaudit"].pop("audit")
    assert options["reaudit"] == options["audit"]


def test_the_options_of_the_command_reach_the_audit(audited, monkeypatch):
    tiny, first = audited
    [other] = index(tiny.workspace, "tiny@champion", IndexOptions(seed=1))
    monkeypatch.setenv("GRADTRAIL_ALLOWED_ADAPTERS", json.dumps([tiny.reference]))
    monkeypatch.setenv("GRADTRAIL_ADAPTER_PATH", str(tiny.folder))
    monkeypatch.setenv("GRADTRAIL_MLFLOW_TRACKING_URI", tiny.workspace.tracking_uri)
    command = ["reaudit", "tiny@champion", "--home", str(tiny.home)]
    monkeypatch.setenv("PREFECT_API_URL", PREFECT_API_URL.value())
    asked = [
        "--method", "influence", "--index", other.index_id[:12], "--curvature", "empirical", "--relative-damping", "2",
        "--absolute-damping", "0.25", "--top-k", "3", "--audit", first.audit_id[:12],
    ]  # fmt: skip
    made = reaudited(tiny, [*command, *asked])
    assert (made.method, made.index_ids, len(made.outputs)) == ("influence", (other.index_id,), 2)
    said = {name: made.parameters[name] for name in ("curvature", "relative_damping", "absolute_damping", "top_k")}
    assert said == {"curvature": "empirical", "relative_damping": 2.0, "absolute_damping": 0.25, "top_k": 3}
    made = reaudited(tiny, [*command, "--horizon", "0.5"])
    assert (made.method, made.parameters["horizon"]) == ("horizon", 0.5)
    never = CliRunner().invoke(app, [*command, "--horizon", "now"])
    assert isinstance(never.exception, NotFoundError)
    assert "The horizon now of tiny/1 was never calibrated" in str(never.exception)
    one = CliRunner().invoke(app, [*command, "--method", "grad_dot", "--every-checkpoint"])
    assert isinstance(one.exception, GradtrailError)


def reaudited(tiny, command):
    result = CliRunner().invoke(app, [*command, "--json"])
    assert result.exit_code == 0, f"{result.output}{result.exception}"
    with tiny.workspace.ledger().read() as connection:
        return queries.audit_details(connection, json.loads(result.stdout)["audit_id"]).audit


def test_what_the_guide_lets_a_backup_leave_out_is_not_needed_or_measured_again(audited):
    tiny, first = audited
    guide = (Path(__file__).resolve().parents[2] / "deploy" / "README.md").read_text()
    listed = re.search(r"<!-- may be left out -->\n(.*?)\n\n", guide, re.DOTALL)[1]
    named = [name for line in listed.splitlines() for name in re.findall(r"`(\w+)/`", line.partition(":")[0])]
    assert named == ["gradients", "calibrations", "prefect", "scratch", "locks"]
    assert {"gradients", "locks"} <= {path.name for path in tiny.home.iterdir()}
    for name in named:
        shutil.rmtree(tiny.home / name, ignore_errors=True)
    assert {problem.kind for problem in verify_workspace(tiny.workspace).problems} == {"index"}
    [again] = index(tiny.workspace, "tiny@champion")
    assert again.remeasured
    assert reaudit(tiny.workspace, "tiny@champion", AuditOptions("grad_cos")).output_count == 2
    assert audits(tiny)[0] == first.audit_id
    assert not verify_workspace(tiny.workspace).problems
