"""Outputs as a serving process writes them: one JSON line an output, in a file of its own for each process and day."""

from __future__ import annotations

import os
import re
import secrets
import socket
import threading
from datetime import UTC, datetime
from pathlib import Path

from gradtrail.errors import StoreError

_PRIVATE = 0o600


class CallLog:
    """Appends to the files of this process in one folder; safe from many threads, processes and after a fork.

    Each line is written by one call to the system at the end of a file that no other process writes, so that a reader
    sees whole lines and a kill loses at most the output it interrupted. The file of the next day is another one.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = threading.Lock()
        self._owner: tuple[int, str] = (0, "")
        self._descriptor = -1

    def append(self, line: bytes) -> None:
        """Add one line; its end is added here.

        Raises:
            StoreError: the file cannot be written.
        """
        with self._lock:
            try:
                descriptor = self._open()
                content = line + b"\n"
                written = os.write(descriptor, content)
                if written != len(content):
                    self._close()
                    raise OSError(f"{written} of {len(content)} bytes were written")
            except OSError as fault:
                raise StoreError(
                    f"An output cannot be written into {self.folder}: {fault}.", "Check the folder and the disk."
                ) from fault

    def _open(self) -> int:
        today = datetime.now(UTC).date().isoformat()
        if self._owner != (os.getpid(), today):
            self._close()
            self.folder.mkdir(parents=True, exist_ok=True)
            host = re.sub(r"[^A-Za-z0-9-]", "-", socket.gethostname())[:64]
            name = f"calls-{today}-{host}-{os.getpid()}-{secrets.token_hex(4)}.jsonl"
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND
            self._descriptor = os.open(self.folder / name, flags, _PRIVATE)
            self._owner = (os.getpid(), today)
        return self._descriptor

    def _close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor, self._owner = -1, (0, "")
