"""Amounts as people type them: a time such as 5m, a list of whole numbers such as 10,50,200."""

from __future__ import annotations

import re

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
