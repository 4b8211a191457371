"""gradtrail: which training data made this output, under which licence, and how far can that answer be trusted.

Public names load on first use, so that `import gradtrail` stays instant and heavy libraries load only when needed.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any

from gradtrail.moved import find_moved

if TYPE_CHECKING:
    __version__: str

    from gradtrail.api import Connection as Connection
    from gradtrail.api import connect as connect
    from gradtrail.attribution.adapters.base import ClassificationAdapter as ClassificationAdapter
    from gradtrail.attribution.adapters.base import ModelAdapter as ModelAdapter
    from gradtrail.attribution.adapters.base import RegressionAdapter as RegressionAdapter
    from gradtrail.attribution.adapters.causal_language_model import CausalLMAdapter as CausalLMAdapter
    from gradtrail.inbox import record_output as record_output
    from gradtrail.inbox import record_outputs as record_outputs
    from gradtrail.nouns import Example as Example
    from gradtrail.nouns import Preview as Preview
    from gradtrail.registration import register as register
    from gradtrail.tasks.ingest.registering import TrainedWeights as TrainedWeights

find_moved()

_EXPORTS = {
    "CausalLMAdapter": "gradtrail.attribution.adapters.causal_language_model",
    "ClassificationAdapter": "gradtrail.attribution.adapters.base",
    "Connection": "gradtrail.api",
    "Example": "gradtrail.nouns",
    "ModelAdapter": "gradtrail.attribution.adapters.base",
    "Preview": "gradtrail.nouns",
    "RegressionAdapter": "gradtrail.attribution.adapters.base",
    "TrainedWeights": "gradtrail.tasks.ingest.registering",
    "connect": "gradtrail.api",
    "record_output": "gradtrail.inbox",
    "record_outputs": "gradtrail.inbox",
    "register": "gradtrail.registration",
}

__all__ = [
    "CausalLMAdapter",
    "ClassificationAdapter",
    "Connection",
    "Example",
    "ModelAdapter",
    "Preview",
    "RegressionAdapter",
    "TrainedWeights",
    "__version__",
    "connect",
    "record_output",
    "record_outputs",
    "register",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return _version()
    if name in _EXPORTS:
        return getattr(import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module 'gradtrail' has no attribute {name!r}")


@cache
def _version() -> str:
    # Takes longer to import than all that a command needs for its help.
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("gradtrail")
    except PackageNotFoundError:
        return "0+checkout"


def __dir__() -> list[str]:
    return __all__
