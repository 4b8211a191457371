"""Every module can be the first that is imported, and what it answers does not depend on who else was."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.ci  # every module in turn, without what another loaded

REGISTRIES = """
from torch import nn
from gradtrail.attribution.layers.registry import find_rule
assert find_rule(nn.Linear(2, 3)) is not None
assert find_rule(nn.ReLU()) is None
from gradtrail.attribution.methods.registry import METHODS, find_method
assert [need.name for need in find_method("influence").needs] == ["curvature"]
from gradtrail.attribution.methods import rules
assert list(METHODS)[0] == "grad_dot" and len(METHODS) == len(rules.METHODS) > 10
"""


def test_every_module_can_be_imported_first() -> None:
    script = Path(__file__).with_name("import_each_alone.py")
    finished = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    assert json.loads(finished.stdout.splitlines()[-1]) == []


def test_registries_are_complete_for_whoever_asks_first() -> None:
    finished = subprocess.run([sys.executable, "-c", REGISTRIES], capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
