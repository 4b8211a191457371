"""The published snapshot and its seal.

The snapshot is a byte copy of the ledger file. The seal, a JSON file beside it, holds the hash of the last event and
the digests of both files: while nothing is written after it, one changed byte in either file shows, and later the
removal of events up to that point shows still.

One process publishes at a time. It writes three files in this order: the next seal, the snapshot, the seal. Killed
between any two, the snapshot agrees with one of the two seals, and `read_seal` takes that one; the next publication
first makes it the seal. So whenever there is a snapshot, there is a seal of it.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

import duckdb

from gradtrail.digests import canonical_json, sha256_file, sha256_json
from gradtrail.errors import LedgerError, NotFoundError, UsageError
from gradtrail.lineage.chain.appending import head
from gradtrail.lineage.connections import WRITING, first_row, shared_file
from gradtrail.lineage.ledger.definitions import open_known_snapshot

_COPY_BYTES = 1 << 20


@dataclass(frozen=True)
class Seal:
    """What the ledger was when the snapshot was published. `published_at` is ISO 8601, UTC.

    In the file, `seal_sha256` stands beside the fields: the digest of their canonical JSON.
    """

    published_at: str
    head_sequence: int
    head_hash: str
    ledger_sha256: str
    snapshot_sha256: str


def seal_path(snapshot: Path) -> Path:
    """The seal that lies beside a snapshot."""
    return snapshot.with_name(snapshot.name + ".seal.json")


def copy_and_seal(database: Path, snapshot: Path, *, patience_seconds: float) -> None:
    """Publish the ledger file as it stands. The caller holds the exclusive lock and no connection.

    Raises:
        LedgerError: the copy or its seal cannot be written, for example because the disk is full, or the ledger has
            lost or changed the event that the seal before holds; the old ones stay.
    """
    part = snapshot.with_name(snapshot.name + ".part")
    following = _next_seal_path(snapshot)
    with _alone(snapshot), shared_file(database, patience_seconds=patience_seconds) as source:
        try:
            _finish_interrupted(snapshot)
            digest = _copy(source, part)
            with closing(open_known_snapshot(part)) as connection:
                _require_continued(connection, database, snapshot)
                sequence, event_digest = head(connection)
            seal = Seal(datetime.now(UTC).isoformat(timespec="seconds"), sequence, event_digest, digest, digest)
            _write(following, _content(seal))
        except OSError as error:
            part.unlink(missing_ok=True)
            raise LedgerError(
                f"The snapshot {snapshot} cannot be published: {error.strerror or error}. The one before stays.",
                "Make room on the disk; the next flow publishes everything.",
            ) from error
        except LedgerError:
            part.unlink(missing_ok=True)
            raise
        part.replace(snapshot)
        following.replace(seal_path(snapshot))
        _sync(snapshot.parent)
        # Nobody can be writing now: what marks there are, killed writers left.
        for mark in database.parent.glob(f"{database.name}{WRITING}*"):
            mark.unlink(missing_ok=True)


def read_seal(snapshot: Path) -> Seal | None:
    """The seal of the published snapshot; None when nothing was published yet, or the seal was removed.

    Raises:
        LedgerError: the seal is not as it was written.
    """
    interrupted = _interrupted(snapshot)
    if interrupted is not None:
        return interrupted
    path = seal_path(snapshot)
    return _parse(path) if path.is_file() else None


def read_seal_file(path: Path) -> Seal:
    """A copy of a seal that was kept elsewhere.

    Raises:
        NotFoundError: there is no such file.
        UsageError: it is no seal, or not as it was written.
    """
    try:
        return _parse(path)
    except OSError as error:
        raise NotFoundError(
            f"The seal {path} cannot be read: {error.strerror}.",
            "Name a copy of snapshot.duckdb.seal.json that was kept elsewhere.",
        ) from error
    except LedgerError as error:
        raise UsageError(error.what, "Name a copy of snapshot.duckdb.seal.json as gradtrail wrote it.") from error


def is_continued(connection: duckdb.DuckDBPyConnection, seal: Seal) -> bool:
    """Whether the ledger still has the last event that the seal holds."""
    row = first_row(connection, "SELECT event_hash FROM event WHERE sequence = ?", [seal.head_sequence])
    return seal.head_sequence == 0 or (row is not None and row[0] == seal.head_hash)


@contextmanager
def publications_held(snapshot: Path) -> Iterator[None]:
    """Wait until no other process publishes, and keep it from publishing. Creates no file."""
    try:
        lock = _lock_path(snapshot).open("rb")
    except FileNotFoundError:
        yield  # nothing was published yet
        return
    with lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        yield


def _require_continued(connection: duckdb.DuckDBPyConnection, database: Path, snapshot: Path) -> None:
    # A new seal over a history that was cut or rewritten would remove every trace of that.
    try:
        seal = read_seal(snapshot)
    except LedgerError:
        return  # a seal that was changed itself is replaced, as its error says
    if seal is not None and not is_continued(connection, seal):
        raise LedgerError(
            f"The ledger {database} does not continue what was sealed at {seal.published_at}: event "
            f"{seal.head_sequence} is gone or another. Nothing was published; the snapshot before stays.",
            "Find out by gradtrail verify what was changed, and restore a backup with its seal. Where all of it is "
            f"meant, move {seal_path(snapshot)} away.",
        )


def _interrupted(snapshot: Path) -> Seal | None:
    """The next seal, where a publication was killed after the snapshot that it speaks of was in place."""
    following = _next_seal_path(snapshot)
    if following.is_file() and snapshot.is_file():
        seal = _parse(following)
        if seal.snapshot_sha256 == sha256_file(snapshot):
            return seal
    return None


def _finish_interrupted(snapshot: Path) -> None:
    # Else the next seal would be overwritten, and a second kill would leave the snapshot without any seal.
    with suppress(LedgerError):
        if _interrupted(snapshot) is not None:
            _next_seal_path(snapshot).replace(seal_path(snapshot))


@contextmanager
def _alone(snapshot: Path) -> Iterator[None]:
    """Wait until no other process publishes: the lock on the ledger is shared with those that only copy it."""
    with _lock_path(snapshot).open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _parse(path: Path) -> Seal:
    content = path.read_bytes()
    try:
        fields = json.loads(content)
        seal = Seal(**{name: fields[name] for name in Seal.__dataclass_fields__})
        unchanged = content == _content(seal)
    except (ValueError, TypeError, KeyError):
        unchanged = False
    if not unchanged:
        raise LedgerError(
            f"The seal {path} is not as gradtrail wrote it.", "Find out who changed it, then publish a new snapshot."
        )
    return seal


def _content(seal: Seal) -> bytes:
    fields = asdict(seal)
    return canonical_json({**fields, "seal_sha256": sha256_json(fields)}) + b"\n"


def _lock_path(snapshot: Path) -> Path:
    return snapshot.with_name(snapshot.name + ".lock")


def _next_seal_path(snapshot: Path) -> Path:
    return snapshot.with_name(snapshot.name + ".seal.json.next")


def _copy(source: BinaryIO, part: Path) -> str:
    digest = hashlib.sha256()
    with part.open("wb") as target:
        while piece := source.read(_COPY_BYTES):
            digest.update(piece)
            target.write(piece)
        target.flush()
        os.fsync(target.fileno())
    return digest.hexdigest()


def _write(path: Path, content: bytes) -> None:
    # Whole or not at all: a next seal that an interrupted publication left is still needed if this one fails.
    part = path.with_name(path.name + ".part")
    try:
        with part.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
