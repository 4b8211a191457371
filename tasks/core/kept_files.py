"""Kept files that decide scores and can be made anew: read only as they were made, by the digest in the ledger."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from pathlib import Path

from gradtrail.digests import sha256_bytes, sha256_file
from gradtrail.errors import StoreError
from gradtrail.lineage.events.pinned_files import pin_file
from gradtrail.lineage.read.measuring_adapters import Connection
from gradtrail.lineage.read.pinned_files import pinned_sha256
from gradtrail.storage.files.atomic import TEMPORARY_SUFFIX
from gradtrail.tasks.core.workspace import Workspace


def read_kept(workspace: Workspace, path: Path, may_be_unpinned: Callable[[Connection], bool]) -> bytes | None:
    """The content of a kept file; None where there is none, or one that nothing speaks for: then make it anew.

    Args:
        workspace: where the file is kept.
        path: of the file, in the home folder.
        may_be_unpinned: asked of a file without a digest in the ledger: whether it may be from before there were any.

    Raises:
        StoreError: the file is not as it was made.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    with workspace.ledger().read() as connection:
        pinned = pinned_sha256(connection, kept_name(workspace, path))
        if pinned is None:
            return content if may_be_unpinned(connection) else None
    if (found := sha256_bytes(content)) != pinned:
        raise StoreError(
            f"{path} decides scores and is not as it was made: sha256 {found}, recorded {pinned}.",
            "Delete the file: it is made anew. Find out who changed it; gradtrail verify names what else was.",
        )
    return content


def write_kept(workspace: Workspace, path: Path, write: Callable[[Path], object]) -> None:
    """Write a kept file by `write`, which gets a path beside it, and record its digest as it takes its place.

    A kill leaves no file, or one without a digest of its own, which is made anew or refused.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name[:80]}.{secrets.token_hex(8)}{TEMPORARY_SUFFIX}")
    try:
        write(beside)
        pin_file(workspace.ledger(), kept_name(workspace, path), sha256_file(beside), lambda: beside.replace(path))
    finally:
        beside.unlink(missing_ok=True)


def kept_name(workspace: Workspace, path: Path) -> str:
    """What the ledger calls a kept file: its path relative to the home folder."""
    return path.relative_to(workspace.root).as_posix()
