"""Files that appear whole or not at all: written beside their destination, flushed, then renamed."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gradtrail.errors import StoreError

TEMPORARY_SUFFIX = ".tmp"
_FULL = (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def replacing(destination: Path) -> Iterator[Path]:
    """Yield a temporary path beside `destination`; on success it becomes `destination` in one step, on failure it goes.

    A kill at any moment leaves either the old file or the new one. What it may leave besides is a hidden `*.tmp` file,
    which every reader of gradtrail ignores.

    Raises:
        StoreError: there is no room for it.
    """
    destination.parent.mkdir(parents=True, exist_ok=True)
    temporary = destination.with_name(f".{destination.name[:80]}.{secrets.token_hex(8)}{TEMPORARY_SUFFIX}")
    try:
        yield temporary
        _flush_to_disk(temporary)
        temporary.replace(destination)
    except OSError as fault:
        if fault.errno not in _FULL:
            raise
        raise StoreError(
            f"{destination} cannot be written: {os.strerror(fault.errno)}.",
            "Make room on the disk, then run the same command again.",
        ) from fault
    finally:
        temporary.unlink(missing_ok=True)


def write_atomically(destination: Path, content: bytes) -> None:
    """Write `content` to `destination`, whole or not at all."""
    with replacing(destination) as temporary:
        temporary.write_bytes(content)


def _flush_to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
