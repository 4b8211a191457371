"""What the settings say of a model to look after; imports nothing heavy, for every command reads the settings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from gradtrail.nouns import Target


@dataclass(frozen=True)
class WatchedModel:
    """A model that gradtrail looks after, as `[[models]]` of the settings describes it.

    Attributes:
        reference: `NAME@alias` follows the alias; `NAME` takes every new version.
        adapter: `module:Class` for versions that were registered without one.
        calibrate: measure the fidelity of new versions too.
        audit: cron of the audits.
        target: what audits explain.
        method: attribution method; `auto` is what the calibration chose.
    """

    # pydantic reads this where settings or flow parameters are checked: an unknown key is an error and not ignored.
    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    reference: str
    adapter: str = ""
    calibrate: bool = True
    audit: str = "*/15 * * * *"
    target: Target = "emitted"
    method: str = "auto"
