"""Spans of time in words."""

from __future__ import annotations


def in_words(seconds: float) -> str:
    """A span of time for people: `90 seconds`, `3.0 hours`, `2.5 days`."""
    for unit, length, next_length in (("seconds", 1, 60), ("minutes", 60, 3600), ("hours", 3600, 86400)):
        if seconds < 2 * next_length:
            return f"{seconds / length:.3g} {unit}"
    return f"{seconds / 86400:,.1f} days"
