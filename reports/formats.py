"""Numbers, times and addresses as a reader sees them; the same everywhere in a report, on every machine."""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

from markupsafe import Markup

_MONTHS = (
    *("January", "February", "March", "April", "May", "June"),
    *("July", "August", "September", "October", "November", "December"),
)
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
_PLAIN_FROM, _PLAIN_BELOW = 1e-3, 1e5
_THREE_DIGITS_FROM, _TENTHS_FROM, _TWO_DECIMALS_FROM = 100.0, 0.995, 0.01
_ONE_DECIMAL_FROM = 0.01
_SMALLEST_SHARE = 0.0001


def number(value: float, significant: int = 3) -> str:
    """Three significant digits, or as many as asked: `0.0123`, `12.3`, `4.50×10⁻⁶`."""
    if value == 0:
        return "0"
    size = abs(value)
    sign = "−" if value < 0 else ""
    if not math.isfinite(size):
        return f"{sign}∞" if math.isinf(size) else "not a number"
    if _PLAIN_FROM <= size < _PLAIN_BELOW:
        digits = max(0, significant - 1 - math.floor(math.log10(size)))
        return f"{sign}{size:,.{digits}f}"
    mantissa, exponent = f"{size:.{significant - 1}e}".split("e")
    return f"{sign}{mantissa}×10{str(int(exponent)).translate(_SUPERSCRIPTS)}"


def score(value: float) -> str:
    """A number that always carries its sign, because the sign is the message."""
    return f"+{number(value)}" if value > 0 else number(value)


def percent(share: float) -> str:
    """A share of 1 as a percentage: `41.3%`, `0.52%`, `<0.01%`."""
    if share == 0:
        return "0%"
    if abs(share) < _SMALLEST_SHARE:
        return "<0.01%"
    if abs(share) < _ONE_DECIMAL_FROM:
        return f"{share * 100:.2f}%"
    return "100%" if share == 1 else f"{share * 100:.1f}%"


def ratio(value: float) -> str:
    """How many times: `3.4×`."""
    if value >= _TENTHS_FROM:
        return f"{value:,.0f}×" if value >= _THREE_DIGITS_FROM else f"{value:.1f}×"
    return f"{value:.2f}×" if value >= _TWO_DECIMALS_FROM or value == 0 else "<0.01×"


def count(value: int) -> str:
    """A whole number with separators: `1,437`."""
    return f"{value:,}"


def plural(value: int, one: str, many: str = "") -> str:
    """A count with its noun: `1 output`, `4 outputs`."""
    return f"{value:,} {one if value == 1 else many or one + 's'}"


def moment(time: datetime) -> str:
    """A time in UTC: `21 November 2026, 23:08 UTC`."""
    utc = time.astimezone(UTC)
    return f"{utc.day} {_MONTHS[utc.month - 1]} {utc.year}, {utc:%H:%M} UTC"


def web_address(address: str | None) -> str | None:
    """`address` when a browser may follow it, that is http or https with a host; else None."""
    if address is None or _UNPRINTABLE.search(address):
        return None
    try:
        parts = urlsplit(address)
    except ValueError:
        return None
    return address if parts.scheme in ("http", "https") and parts.netloc else None


def printable(value: Any) -> Any:
    """Text without control characters, which HTML cannot hold: each is shown as �. Other values pass."""
    if isinstance(value, str) and not isinstance(value, Markup) and not value.isprintable():
        return _UNPRINTABLE.sub("�", value)
    return value
