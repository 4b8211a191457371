"""Filling names of tables and columns into SQL. Values are never filled in: they are bound."""

from __future__ import annotations

import re
from string import Template

_NAMES = re.compile(r"[a-z0-9_]+(, [a-z0-9_]+)*")


def statement(template: str, **names: str) -> str:
    """`template` with each `$name` replaced by a table or column, or several columns with `, ` between them.

    Raises:
        ValueError: what should be a name is anything else.
    """
    for name in names.values():
        if not _NAMES.fullmatch(name):
            raise ValueError(f"{name!r} is not the name of a table or column")
    return Template(template).substitute(names)
