"""Signatures of audits: made once, checked by anyone with the public key, with openssl too."""

from __future__ import annotations

import json
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from gradtrail.errors import NotFoundError, UsageError
from gradtrail.lineage.chain.proofs import audit_evidence
from gradtrail.lineage.ledger.writing import Ledger
from gradtrail.lineage.verify.signatures import new_keys, read_public_key, sign_audit, signature_of
from gradtrail.lineage.verify.verifying import verify_ledger


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, Path]:
    return new_keys(tmp_path / "auditor.pem")


def test_a_new_key_is_readable_by_its_owner_only_and_never_overwrites(keys, tmp_path: Path) -> None:
    private, public = keys
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    assert read_public_key(public) == read_public_key(private)
    before = private.read_bytes()
    with pytest.raises(UsageError, match="cannot be written: File exists"):
        new_keys(private)
    assert private.read_bytes() == before
    (tmp_path / "other.pem.pub").touch()
    with pytest.raises(UsageError, match="File exists"):
        new_keys(tmp_path / "other.pem")
    assert not (tmp_path / "other.pem").exists()


def test_an_audit_is_signed_once_whatever_key_comes_later(keys, story, story_ledger: Ledger, tmp_path: Path) -> None:
    audit_id = story.audit.audit_id
    first = sign_audit(story_ledger, audit_id, keys[0])
    other, _ = new_keys(tmp_path / "other.pem")
    assert sign_audit(story_ledger, audit_id, other) == first
    with story_ledger.read() as connection:
        evidence = audit_evidence(connection, audit_id)
        assert signature_of(connection, audit_id) == first
    assert json.loads(first.statement) == {
        "audit_id": audit_id,
        "audit_root": evidence.audit_root,
        "event_hash": evidence.event_hash,
    }
    assert verify_ledger(story_ledger, read_public_key(keys[1])).ok


def test_a_missing_signature_and_one_by_another_key_are_named(keys, story, story_ledger: Ledger, tmp_path) -> None:
    demanded = read_public_key(keys[1])
    [problem] = verify_ledger(story_ledger, demanded).problems
    assert (problem.kind, problem.subject) == ("signature_missing", f"audit {story.audit.audit_id}")
    sign_audit(story_ledger, story.audit.audit_id, new_keys(tmp_path / "other.pem")[0])
    [problem] = verify_ledger(story_ledger, demanded).problems
    assert problem.kind == "signature_bad"
    assert "signed by key" in problem.message
    assert verify_ledger(story_ledger).ok


def test_a_forged_signature_is_named_even_where_no_key_is_demanded(keys, story, story_ledger: Ledger, tamper) -> None:
    sign_audit(story_ledger, story.audit.audit_id, keys[0])
    tamper(story_ledger, "UPDATE audit_signature SET signature = repeat('0', 128)")
    kinds = [problem.kind for problem in verify_ledger(story_ledger).problems]
    assert kinds == ["row_changed", "signature_bad"]


@pytest.mark.parametrize(
    "content", [b"", b"nonsense", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"]
)
def test_what_is_no_key_is_refused(content: bytes, story, story_ledger: Ledger, tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    path.write_bytes(content)
    for use in (lambda: read_public_key(path), lambda: sign_audit(story_ledger, story.audit.audit_id, path)):
        with pytest.raises(UsageError, match="does not hold an Ed25519 key"):
            use()
    with pytest.raises(NotFoundError, match="cannot be read"):
        read_public_key(tmp_path / "absent.pem")


def test_openssl_confirms_a_signature_and_refuses_another_statement(keys, story, story_ledger, tmp_path: Path) -> None:
    openssl = shutil.which("openssl")
    assert openssl, "openssl is part of every Debian; install it to run this test"
    signature = sign_audit(story_ledger, story.audit.audit_id, keys[0])
    (tmp_path / "signature.bin").write_bytes(bytes.fromhex(signature.signature))
    for statement, verdict in ((signature.statement, 0), (signature.statement.replace("a", "b"), 1)):
        (tmp_path / "statement.json").write_text(statement)
        command = [openssl, "pkeyutl", "-verify", "-pubin", "-inkey", str(keys[1]), "-rawin"]
        command += ["-in", str(tmp_path / "statement.json"), "-sigfile", str(tmp_path / "signature.bin")]
        assert subprocess.run(command, check=False, capture_output=True).returncode == verdict
