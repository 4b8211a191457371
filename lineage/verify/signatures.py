"""Ed25519 signatures over what ties an audit to the ledger, and the check of all that are recorded."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import duckdb

from gradtrail.digests import canonical_json, sha256_bytes, short
from gradtrail.errors import NotFoundError, UsageError, VerificationError
from gradtrail.lineage.chain.appending import append
from gradtrail.lineage.chain.proofs import AuditEvidence, audit_evidence
from gradtrail.lineage.chain.row_check import Problem
from gradtrail.lineage.chain.rows import rows_from
from gradtrail.lineage.connections import first_row
from gradtrail.lineage.ledger.writing import Ledger
from gradtrail.lineage.schema.nouns import noun_of, select

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

_PUBLIC_SUFFIX = ".pub"


@dataclass(frozen=True)
class AuditSignature:
    """A signature of `statement`. Key and signature are hexadecimal; `public_key_sha256` is the key's fingerprint."""

    audit_id: str
    public_key_sha256: str
    public_key: str
    statement: str
    signature: str


def new_keys(path: Path) -> tuple[Path, Path]:
    """Write an Ed25519 key pair as PEM: the private key at `path` for its owner only, the public key beside it.

    Raises:
        UsageError: one of the files is there already, or the folder cannot be written; nothing is left behind then.
    """
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    beside = path.with_name(path.name + _PUBLIC_SUFFIX)
    written: list[Path] = []
    try:
        for target, content, mode in ((path, private, 0o600), (beside, public, 0o644)):
            descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
            written.append(target)
            with os.fdopen(descriptor, "wb") as stream:
                stream.write(content)
    except OSError as error:
        for target in written:
            target.unlink()
        raise UsageError(
            f"The key {path} cannot be written: {error.strerror}.",
            "Name a file that does not exist yet, in a folder that you may write.",
        ) from error
    return path, beside


def read_public_key(path: Path) -> str:
    """The public key in a PEM file, or that of the private key in it, as 64 hexadecimal digits.

    Raises:
        NotFoundError: no such file.
        UsageError: no Ed25519 key in PEM form.
    """
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    content = _key_file(path)
    if b"PRIVATE KEY" in content:
        return _private_key(path).public_key().public_bytes_raw().hex()
    try:
        key = load_pem_public_key(content)
    except ValueError as error:
        raise _not_a_key(path) from error
    if not isinstance(key, Ed25519PublicKey):
        raise _not_a_key(path)
    return key.public_bytes_raw().hex()


def sign_audit(ledger: Ledger, audit_id: str, key: Path) -> AuditSignature:
    """Sign an audit and record the signature; one that is recorded already stays, whatever key made it.

    Raises:
        NotFoundError: no such audit or key file.
        UsageError: no Ed25519 private key in PEM form.
        VerificationError: the event of the audit is gone, or does not say what was recorded.
    """
    private = _private_key(key)
    with ledger.transaction() as connection:
        recorded = signature_of(connection, audit_id)
        if recorded is not None:
            return recorded
        statement = signed_statement(audit_evidence(connection, audit_id))
        public = private.public_key().public_bytes_raw()
        made = AuditSignature(
            audit_id, sha256_bytes(public), public.hex(), statement, private.sign(statement.encode()).hex()
        )
        append(connection, "audit_signature", audit_id, [rows_from("audit_signature", [made])])
        return made


def signature_of(connection: duckdb.DuckDBPyConnection, audit_id: str) -> AuditSignature | None:
    """The signature of an audit."""
    row = first_row(connection, select(AuditSignature, "FROM audit_signature WHERE audit_id = ?"), [audit_id])
    return noun_of(AuditSignature, row) if row else None


def signed_statement(evidence: AuditEvidence) -> str:
    """The text that is signed: canonical JSON, so that it can be made again byte for byte."""
    return canonical_json(
        {"audit_id": evidence.audit_id, "audit_root": evidence.audit_root, "event_hash": evidence.event_hash}
    ).decode()


def is_valid(signature: AuditSignature) -> bool:
    """Whether the signature is one of its statement, by its key."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        public = bytes.fromhex(signature.public_key)
        key = Ed25519PublicKey.from_public_bytes(public)
        key.verify(bytes.fromhex(signature.signature), signature.statement.encode())
    except (InvalidSignature, ValueError):
        return False
    return sha256_bytes(public) == signature.public_key_sha256


def check_signatures(connection: duckdb.DuckDBPyConnection, public_key: str = "") -> Iterator[Problem]:
    """What is wrong with the signatures of all audits.

    Args:
        connection: on the ledger.
        public_key: hexadecimal; every audit must be signed by this key then.
    """
    for (audit_id,) in connection.execute("SELECT audit_id FROM audit ORDER BY event_sequence").fetchall():
        signature = signature_of(connection, audit_id)
        if signature is None:
            if public_key:
                yield Problem("signature_missing", f"audit {audit_id}", "it is not signed, though a key is demanded")
        elif not is_valid(signature) or signature.statement != _statement_now(connection, audit_id):
            yield Problem("signature_bad", f"audit {audit_id}", "its signature is not one of its root and event")
        elif public_key and signature.public_key != public_key:
            demanded = sha256_bytes(bytes.fromhex(public_key))
            yield Problem(
                "signature_bad",
                f"audit {audit_id}",
                f"it was signed by key {short(signature.public_key_sha256)}, not by {short(demanded)}",
            )


def _statement_now(connection: duckdb.DuckDBPyConnection, audit_id: str) -> str | None:
    """What a signature would state today; None where the event of the audit is gone or cannot be read."""
    try:
        return signed_statement(audit_evidence(connection, audit_id))
    except VerificationError:
        return None


def _private_key(path: Path) -> Ed25519PrivateKey:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(_key_file(path), password=None)
    except (ValueError, TypeError) as error:
        raise _not_a_key(path) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise _not_a_key(path)
    return key


def _key_file(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise NotFoundError(
            f"The key {path} cannot be read: {error.strerror}.", "Make a pair with: gradtrail keys new FILE."
        ) from error


def _not_a_key(path: Path) -> UsageError:
    return UsageError(
        f"{path} does not hold an Ed25519 key in PEM form, without a passphrase.",
        "Make a pair with: gradtrail keys new FILE.",
    )
