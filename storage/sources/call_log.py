"""Outputs as a serving process writes them: one JSON line an output, in a file of its own for each process and day."""

from __future__ import annotations

import fcntl
import os
import re
import secrets
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from gradtrail.errors import StoreError

_PRIVATE = 0o600


class CallLog:
    """Appends to the files of this process in one folder; safe from many threads, processes and after a fork.

    Each line is written by one call to the system at the end of a file that no other process writes, so that a reader
    sees whole lines and a kill loses at most the output it interrupted. The file of the next day is another one; so is
    the next file where this one is gone, was replaced, or is being written anew by an erasure: nobody waits for that.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = threading.Lock()
        self._owner: tuple[int, str] = (0, "")
        self._descriptor = -1
        self._path = folder

    def append(self, line: bytes) -> None:
        """Add one line; its end is added here.

        Raises:
            StoreError: the file cannot be written.
        """
        with self._lock:
            try:
                content = line + b"\n"
                with self._held() as descriptor:
                    written = os.write(descriptor, content)
                if written != len(content):
                    self._close()
                    raise OSError(f"{written} of {len(content)} bytes were written")
            except OSError as fault:
                raise StoreError(
                    f"An output cannot be written into {self.folder}: {fault}.", "Check the folder and the disk."
                ) from fault

    @contextmanager
    def _held(self) -> Iterator[int]:
        """A file that is this process's, lies in the folder and is locked against erasures."""
        if not self._lock_file(self._open()):
            self._close()
            self._lock_file(self._open())
        descriptor = self._descriptor
        try:
            yield descriptor
        finally:
            with suppress(OSError):
                # Not left to closing it: a forked process may have it open too.
                fcntl.flock(descriptor, fcntl.LOCK_UN)

    def _lock_file(self, descriptor: int) -> bool:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:
            pass  # a disk without file locks
        try:
            return os.path.samestat(os.fstat(descriptor), self._path.stat())
        except FileNotFoundError:
            return False

    def _open(self) -> int:
        today = datetime.now(UTC).date().isoformat()
        if self._owner != (os.getpid(), today):
            self._close()
            self.folder.mkdir(parents=True, exist_ok=True)
            host = re.sub(r"[^A-Za-z0-9-]", "-", socket.gethostname())[:64]
            name = f"calls-{today}-{host}-{os.getpid()}-{secrets.token_hex(4)}.jsonl"
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND
            self._path = self.folder / name
            self._descriptor = os.open(self._path, flags, _PRIVATE)
            self._owner = (os.getpid(), today)
        return self._descriptor

    def _close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor, self._owner = -1, (0, "")
