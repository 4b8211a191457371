"""The peers' own environment, made once: their dependencies would not go together with ours."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from machine import ROOT

HERE = ROOT / ".venv-peers"
PEERS = {
    "bergson": "bergson 2.5.1",
    "dattri": "dattri 0.3.0",
    "traker": "traker 0.3.2",
    "kronfluence": "kronfluence 1.0.1",
}
_FOLDER = ROOT / "benchmarks" / "peers"
_REQUIREMENTS = _FOLDER / "requirements.txt"


def peer_python() -> Path:
    """The interpreter of the peers' environment, which is made where it is missing or older than its requirements."""
    python, made = HERE / "bin" / "python", HERE / ".made"
    wanted = hashlib.sha256(_REQUIREMENTS.read_bytes()).hexdigest()
    if made.exists() and made.read_text() == wanted:
        return python
    print(f"Making {HERE} for the peers: some minutes, once.", file=sys.stderr)
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    subprocess.run([sys.executable, "-m", "venv", str(HERE)], check=True)  # noqa: S603
    subprocess.run([*pip, "torch==2.13.0"], check=True)  # noqa: S603
    subprocess.run([*pip, "-r", str(_REQUIREMENTS)], check=True)  # noqa: S603
    made.write_text(wanted)
    return python


class Peer:
    """One peer doing one workload in a process of its own, a timed pass at a time, so that passes can interleave."""

    def __init__(
        self,
        name: str,
        workload: str,
        *,
        tiny: bool,
        threads: int,
        by_one_dnn: bool,
        environment: Mapping[str, str],
    ) -> None:
        products = "oneDNN" if by_one_dnn else "usual"
        command = [str(_FOLDER / "worker.py"), name, workload, "tiny" if tiny else "full", str(threads), products]
        self._process = subprocess.Popen(  # noqa: S603
            [str(peer_python()), *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**environment, "PYTHONPATH": str(ROOT / "benchmarks"), "HF_HUB_OFFLINE": "1"},
        )
        first = self._answer()
        self.unavailable: str | None = first.get("unavailable")
        self.covers: str = first.get("covers", "")

    def run(self) -> tuple[float, int]:
        """Seconds and examples of one more pass."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        answer = self._answer()
        return answer["seconds"], answer["examples"]

    def close(self) -> None:
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process.wait(timeout=60)

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            return {"unavailable": f"its process ended with code {self._process.wait()}"}
        answer: dict[str, Any] = json.loads(line)
        return answer
