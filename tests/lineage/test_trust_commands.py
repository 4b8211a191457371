"""The commands of docs/evidence.md that need a ledger only."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from gradtrail.cli import app
from gradtrail.errors import GradtrailError, UsageError, VerificationError
from gradtrail.lineage.chain.proofs import audit_evidence
from gradtrail.lineage.ledger.writing import Ledger
from gradtrail.lineage.read import queries
from gradtrail.lineage.verify.signatures import new_keys, sign_audit

PAGE = Path(__file__).parents[2] / "docs" / "evidence.md"


@pytest.fixture
def run(story_ledger: Ledger):
    """Run a command on the story's home; what it prints."""
    home = str(story_ledger.paths.database.parent)

    def command(*arguments: str, answer: str = "", with_home: bool = True) -> str:
        given = [*arguments, "--home", home] if with_home else list(arguments)
        result = CliRunner().invoke(app, given, input=answer)
        if isinstance(result.exception, GradtrailError):
            raise result.exception
        assert result.exit_code == (1 if answer == "n\n" else 0), result.output
        return result.output

    return command


def test_a_proof_is_printed_saved_and_checked_with_the_report_alone(run, story_ledger, story, tmp_path) -> None:
    with story_ledger.read() as connection:
        evidence = audit_evidence(connection, story.audit.audit_id)
    report, proof = tmp_path / "report.json", tmp_path / "proof.json"
    printed = {"audit_id": evidence.audit_id, "audit_root": evidence.audit_root, "event_hash": evidence.event_hash}
    report.write_text(json.dumps({"evidence": printed}))
    proof.write_text(run("verify", "--output", "inbox:0", "--json"))
    assert evidence.audit_root in run("verify", "--output", "inbox:0", "--audit", story.audit.audit_id)
    shutil.rmtree(story_ledger.paths.database.parent)
    checked = ("verify", "--proof", str(proof), "--report", str(report))
    assert "The proof holds: 7 rows" in run(*checked, with_home=False)
    proof.write_text(proof.read_text().replace('"train-01"', '"train-09"'))
    with pytest.raises(VerificationError, match="row 1 of attribution"):
        run(*checked, with_home=False)
    proof.write_text("no JSON")
    with pytest.raises(VerificationError, match="is not JSON"):
        run(*checked, with_home=False)
    with pytest.raises(UsageError, match="against its report"):
        run("verify", "--proof", str(proof), with_home=False)


def test_a_withdrawal_shows_its_reach_asks_and_is_recorded(run, story_ledger: Ledger) -> None:
    dry = run("withdraw", "--source", "forum", "--dry-run")
    assert "6 examples in 1 dataset versions" in dry
    assert "2 outputs" in dry
    assert "75.0%" in dry
    refused = run("withdraw", "--source", "forum", answer="n\n")
    assert "Withdraw them?" in refused
    with story_ledger.read() as connection:
        assert queries.events(connection, 1)[0].kind == "report"
    assert "gradtrail reaudit digits/1" in run("withdraw", "--source", "forum", answer="y\n")
    again = json.loads(run("withdraw", "--attribute", "source=forum", "--yes", "--json"))
    assert again["new"] is False
    assert len(again["reach"]["examples"]) == 6
    assert json.loads(run("withdraw", "--example", "train-02", "--yes", "--json"))["new"] is True
    with story_ledger.read() as connection:
        assert queries.events(connection, 1)[0].kind == "withdrawal"


@pytest.mark.parametrize(
    "arguments",
    [
        ("withdraw",),
        ("withdraw", "--source", "forum", "--example", "train-01"),
        ("withdraw", "--attribute", "forum"),
        ("withdraw", "--source", "forum", "--json"),
        ("retain",),
        ("retain", "--payloads", "soon"),
        ("erase", "--example", "train-99", "--dry-run"),
    ],
)
def test_what_cannot_be_understood_is_refused_with_a_remedy(run, arguments) -> None:
    with pytest.raises(UsageError) as refused:
        run(*arguments)
    assert refused.value.remedy


def test_a_key_pair_is_made_by_a_command(run, tmp_path) -> None:
    made = json.loads(run("keys", "new", str(tmp_path / "auditor.pem"), "--json", with_home=False))
    assert Path(made["public_key"]).read_text().startswith("-----BEGIN PUBLIC KEY-----")


def test_the_commands_of_the_page_confirm_a_signature_without_gradtrail(story_ledger, story, tmp_path) -> None:
    assert shutil.which("openssl"), "openssl is part of every Debian; install it to run this test"
    private, public = new_keys(tmp_path / "auditor.pem")
    signature = sign_audit(story_ledger, story.audit.audit_id, private)
    said = {"statement": signature.statement, "signature": signature.signature}
    (tmp_path / "report.json").write_text(json.dumps({"evidence": {"signature": said}}))
    assert public.name == "auditor.pem.pub"
    [block] = [each for each in re.findall(r"```\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL) if "openssl" in each]
    block = block.replace("python3", sys.executable)
    confirmed = subprocess.run(block, shell=True, cwd=tmp_path, check=True, capture_output=True, text=True)
    assert "Signature Verified Successfully" in confirmed.stdout
