"""Addresses that hold secrets: masked where they are printed, and by the name of a variable where they travel."""

from __future__ import annotations

import os
import re

FROM_ENVIRONMENT = "env:"
"""Begins the name of a variable of the environment that holds an address."""
MASK = "***"
_IN_AUTHORITY = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*://[^\s:/@'\"]*):[^\s/'\"]*@")
_IN_QUERY = re.compile(
    r"([?&;][\w.%-]*(?:password|passwd|pwd|token|secret|signature|sig|credential|api_?key)[\w.%-]*=)[^\s&;#'\"]+",
    re.IGNORECASE,
)


def without_secrets(text: str) -> str:
    """A text with the passwords of every address in it masked, and values of its query that are named as secrets."""
    if "://" not in text:
        return text
    return _IN_QUERY.sub(rf"\1{MASK}", _IN_AUTHORITY.sub(rf"\1:{MASK}@", text))


def by_name(address: str, variable: str) -> str:
    """An address as it may travel: itself, or where it has a secret `env:` and the variable that holds it from now on.

    Processes that this one starts inherit the variable.
    """
    if without_secrets(address) == address:
        return address
    os.environ[variable] = address
    return FROM_ENVIRONMENT + variable


def resolved(address: str) -> str | None:
    """An address, read from the environment where it is `env:NAME`; None where that variable is not set."""
    if not address.startswith(FROM_ENVIRONMENT):
        return address
    return os.environ.get(address.removeprefix(FROM_ENVIRONMENT)) or None
