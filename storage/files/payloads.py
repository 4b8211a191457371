"""Payloads of outputs: bytes in a content-addressed folder, checked on every read, deletable one by one."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from gradtrail.digests import sha256_bytes
from gradtrail.errors import NotFoundError, StoreError
from gradtrail.storage.files.atomic import write_all_atomically

_SHA256 = re.compile(r"[0-9a-f]{64}")


class PayloadStore:
    """Files named by the sha256 of their content, under `root`, in folders of the first two digits.

    Ids are checked to be digests before they become a path, so that none can lead out of `root`.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def put(self, content: bytes) -> str:
        """Store `content` and return its digest. A damaged file of the same digest is replaced."""
        return self.put_all([content])[0]

    def put_all(self, contents: Iterable[bytes]) -> list[str]:
        """`put` of many, faster than one by one."""
        by_digest = [(sha256_bytes(content), content) for content in contents]
        paths = {self._path(sha256): (sha256, content) for sha256, content in by_digest}
        write_all_atomically({path: content for path, (sha256, content) in paths.items() if not _holds(path, sha256)})
        return [sha256 for sha256, _ in by_digest]

    def get(self, sha256: str) -> bytes:
        """The content whose digest this is.

        Raises:
            NotFoundError: it was never stored, or it was deleted.
            StoreError: `sha256` is not a digest, or the stored bytes are no longer those that were put.
        """
        path = self._path(sha256)
        try:
            content = path.read_bytes()
        except FileNotFoundError as fault:
            raise NotFoundError(
                f"Payload {sha256} is not in {self.root}.",
                "It was deleted or has outlived its retention; add the output again to have it back.",
            ) from fault
        except OSError as fault:
            raise StoreError(f"Payload {sha256} cannot be read: {fault}.", f"Look at {path}.") from fault
        if sha256_bytes(content) != sha256:
            raise StoreError(
                f"Payload {sha256} is damaged: its bytes have the digest {sha256_bytes(content)}.",
                f"Restore {path} from a backup, or delete the payload and add the output again.",
            )
        return content

    def delete(self, sha256: str) -> bool:
        """Remove a payload; returns whether there was one.

        Raises:
            StoreError: `sha256` is not a digest.
        """
        path = self._path(sha256)
        try:
            path.unlink()
        except FileNotFoundError:
            return False
        return True

    def __contains__(self, sha256: str) -> bool:
        """Whether a payload of this digest is stored; it is not read."""
        return self._path(sha256).is_file()

    def _path(self, sha256: str) -> Path:
        if not _SHA256.fullmatch(sha256):
            raise StoreError(
                f"{sha256!r} is not the digest of a payload.", "Use the 64 hexadecimal digits of its sha256."
            )
        return self.root / sha256[:2] / sha256


def _holds(path: Path, sha256: str) -> bool:
    try:
        return sha256_bytes(path.read_bytes()) == sha256
    except FileNotFoundError:
        return False
