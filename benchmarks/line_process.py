"""An engine in a process of its own: a line in starts a timed pass, a JSON line comes out when it has ended."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Mapping, Sequence
from typing import Any


class LineProcess:
    """Started at once; passes of several can interleave, or run side by side."""

    def __init__(self, command: Sequence[object], environment: Mapping[str, str]) -> None:
        self._process = subprocess.Popen(  # noqa: S603
            [str(part) for part in command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )

    def ask(self, line: str = "") -> None:
        """Start a pass."""
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def answer(self) -> dict[str, Any]:
        """Wait for the next answer."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            return {"unavailable": f"its process ended with code {self._process.wait()}"}
        answer: dict[str, Any] = json.loads(line)
        return answer

    def run(self) -> tuple[float, int]:
        """Seconds and examples of one more pass."""
        self.ask()
        answer = self.answer()
        return answer["seconds"], answer["examples"]

    def close(self) -> None:
        """End the process."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process.wait(timeout=60)


def run_side_by_side(processes: Sequence[LineProcess], line: str = "") -> tuple[float, int]:
    """Seconds until the last of them has ended, and examples of all."""
    begin = time.perf_counter()
    for process in processes:
        process.ask(line)
    answers = [process.answer() for process in processes]
    return time.perf_counter() - begin, sum(answer["examples"] for answer in answers)
