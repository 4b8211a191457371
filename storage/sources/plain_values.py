"""From what databases, Parquet and Python hold to values that JSON can: one conversion for every source of outputs."""

from __future__ import annotations

import re
from datetime import datetime, time, timedelta
from decimal import Decimal
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network
from typing import Any
from uuid import UUID

_LONGEST_DECIMAL = 1000
_LOWER_ZONE = re.compile(r"(?<=\d)z$")
_SECOND_60 = re.compile(r"^(.{8}(?:..)?\D\d\d:?\d\d:?)60(?!\d)")
_TEXTS = (UUID, IPv4Address, IPv6Address, IPv4Network, IPv6Network, IPv4Interface, IPv6Interface)


def plain_value(value: Any) -> Any:
    """A scalar as text or a number, where it is a decimal, a UUID, an address, a time of day or an interval.

    Decimals without a fraction become whole numbers, others the nearest number; intervals become ISO 8601 durations.
    Whatever else it is, it stays.
    """
    if isinstance(value, Decimal):
        return _number(value)
    if isinstance(value, _TEXTS):
        return str(value)
    if isinstance(value, timedelta) and value == value:  # noqa: PLR0124 (pandas' NaT is none, and not equal to itself)
        return duration(value)
    return value.isoformat() if isinstance(value, time) else value


def duration(span: timedelta) -> str:
    """An interval as an ISO 8601 duration: PT90.5S."""
    microseconds = abs(span) // timedelta(microseconds=1)
    seconds, rest = divmod(microseconds, 10**6)
    fraction = f".{rest:06d}".rstrip("0") if rest else ""
    return f"{'-' if span < timedelta(0) else ''}PT{seconds}{fraction}S"


def parsed_time(text: str) -> datetime:
    """ISO 8601 text as a time; `z` is Z, and second 60, a leap second, the first of the next minute.

    Raises:
        ValueError: it is no time.
    """
    text = _LOWER_ZONE.sub("Z", text.strip())
    leap = _SECOND_60.match(text)
    if leap is None:
        return datetime.fromisoformat(text)
    return datetime.fromisoformat(f"{leap[1]}59{text[leap.end() :]}") + timedelta(seconds=1)


def _number(value: Decimal) -> int | float:
    if value.is_finite() and abs(value.adjusted()) < _LONGEST_DECIMAL and value == value.to_integral_value():
        return int(value)
    return float(value)
