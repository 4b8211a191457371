"""The peers' own environment, made once: their dependencies would not go together with ours."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from line_process import LineProcess
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


class Peer(LineProcess):
    """One peer doing one workload, or an n-th of it, in a process of its own."""

    def __init__(
        self,
        name: str,
        workload: str,
        *,
        tiny: bool,
        threads: int,
        by_one_dnn: bool,
        environment: Mapping[str, str],
        share: int = 1,
    ) -> None:
        products = "oneDNN" if by_one_dnn else "usual"
        size = "tiny" if tiny else "full"
        super().__init__(
            [peer_python(), _FOLDER / "worker.py", name, workload, size, threads, products, share],
            {**environment, "PYTHONPATH": str(ROOT / "benchmarks"), "HF_HUB_OFFLINE": "1"},
        )
        first = self.answer()
        self.unavailable: str | None = first.get("unavailable")
        self.covers: str = first.get("covers", "")
