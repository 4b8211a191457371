"""Amounts as people type them: a time such as 5m, whole numbers such as 10,50,200, a horizon such as 0.5 or now."""

from __future__ import annotations

import re
from math import isfinite
from typing import Literal

from gradtrail.errors import UsageError

_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600}


def seconds_of(text: str) -> float:
    """`90`, `90s`, `5m` or `2h` in seconds.

    Raises:
        UsageError: for anything else, and for no time at all.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text.strip())
    seconds = float(found[1]) * _SECONDS[found[2]] if found else 0.0
    if seconds <= 0:
        raise UsageError(f"{text!r} is not a time.", "Give one such as 90s, 5m or 2h.")
    return seconds


def whole_numbers_of(text: str) -> tuple[int, ...]:
    """`10,50,200` as numbers.

    Raises:
        UsageError: for anything else.
    """
    if not re.fullmatch(r"\s*\d+\s*(,\s*\d+\s*)*", text):
        raise UsageError(f"{text!r} is not a list of whole numbers.", "Give one such as 10,50,200.")
    return tuple(int(part) for part in text.split(","))


def horizon_or_question(text: str) -> tuple[float | None, Literal["now", "training"] | None]:
    """A horizon as a number, learning rate × steps, or the question that is asked by name; neither for an empty text.

    Raises:
        UsageError: for anything else, and for a number that is negative or not finite.
    """
    name = text.strip()
    if name == "now":
        return None, "now"
    if name == "training":
        return None, "training"
    try:
        number = float(name or 0)
    except ValueError:
        number = -1.0
    if number < 0 or not isfinite(number):
        raise UsageError(
            f"{text!r} is not a horizon.", "Give now, training, or a number: learning rate × steps, such as 0.5."
        )
    return number or None, None
