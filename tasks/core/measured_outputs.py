"""Outputs as the pinned checkpoint sees them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from gradtrail.nouns import Target

MEASURING: Mapping[Target, str] = {"emitted": "measuring", "label": "measuring labels"}
"""What the ledger calls the quarantine of outputs that cannot be measured under a target."""


@dataclass(frozen=True)
class MeasuredOutput:
    """An output as the pinned checkpoint sees it."""

    output_id: str
    prediction: str
    reproduced: bool | None


@dataclass(frozen=True)
class MeasuredOutputs:
    """What was measured, as one object: of a list that a task returns, Prefect keeps a note of each element.

    `unread` are outputs whose payload the disk did not give, each with the cause; the next run tries them again.
    """

    outputs: tuple[MeasuredOutput, ...]
    unread: tuple[tuple[str, str], ...] = ()
