"""Modules that the documentation of version 0.2 named and that moved since: importing one gives what took its place."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_loader
from types import ModuleType
from typing import Any

_ATTRIBUTION = {
    "baselines": "yardsticks.baselines",
    "brittleness": "yardsticks.brittleness",
    "capture": "gradients.capture",
    "checks": "gradients.checks",
    "contributions": "scoring.contribution_blocks",
    "datamodel_score": "yardsticks.lds",
    "evaluation": "fidelity.evaluation",
    "horizon_fitting": "weighting.horizons",
    "joint_scoring": "scoring.joint",
    "kronecker": "curvature.kronecker",
    "left_out": "fidelity.removed_sets",
    "retraining": "yardsticks.retraining",
    "training_loop": "fidelity.training_loop",
    "unrolling": "methods.unrolling",
    "weight_fitting": "weighting.fitting",
}
MOVED = {f"gradtrail.attribution.{old}": f"gradtrail.attribution.{new}" for old, new in _ATTRIBUTION.items()}


class _Moved(MetaPathFinder, Loader):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The spec of a stand-in for a module that moved; nothing for others."""
        del path, target
        return spec_from_loader(fullname, self) if fullname in MOVED else None

    def exec_module(self, module: ModuleType) -> None:
        """Let the stand-in hand on every name of what took its place."""
        new = import_module(MOVED[module.__name__])
        warnings.warn(f"{module.__name__} is {new.__name__} now; change the import.", DeprecationWarning, stacklevel=2)

        def hand_on(name: str) -> Any:
            return getattr(new, name)

        module.__dict__["__getattr__"] = hand_on


def find_moved() -> None:
    """Make the old names importable."""
    if not any(isinstance(finder, _Moved) for finder in sys.meta_path):
        sys.meta_path.append(_Moved())
