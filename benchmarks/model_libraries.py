"""Libraries of the models that gradtrail itself does not use, installed once into a folder of their own."""

from __future__ import annotations

import hashlib
import importlib
import shutil
import site
import subprocess
import sys

import torch
from machine import ROOT

HERE = ROOT / ".venv-models"
LIBRARIES = ("timm", "peft", "torchvision", "accelerate")
_REQUIREMENTS = ROOT / "benchmarks" / "zoo" / "requirements.txt"


_declared = []


def add_libraries() -> None:
    """Let the libraries be imported, after all that our own environment has."""
    _make()
    site.addsitedir(str(HERE))
    try:
        importlib.import_module("torchvision")
    except RuntimeError:
        # Its operators are for another build of torch. No model here uses one, but the import wants their names.
        names = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            names.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _declared.append(names)


def _make() -> None:
    """Install the libraries where they are missing or older than their requirements.

    Without their dependencies: our own environment has those, and torch in a build that they would replace.
    """
    made, wanted = HERE / ".made", hashlib.sha256(_REQUIREMENTS.read_bytes()).hexdigest()
    if made.exists() and made.read_text() == wanted:
        return
    print(f"Making {HERE} for {', '.join(LIBRARIES)}: a minute, once.", file=sys.stderr)
    shutil.rmtree(HERE, ignore_errors=True)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    subprocess.run([*pip, "--target", str(HERE), "-r", str(_REQUIREMENTS)], check=True)  # noqa: S603
    made.write_text(wanted)
