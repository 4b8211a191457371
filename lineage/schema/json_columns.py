"""Columns that hold JSON, as text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from gradtrail.digests import canonical_json
from gradtrail.errors import DataError


def json_text(value: Mapping[str, Any], name: str) -> str:
    """A mapping as canonical JSON.

    Raises:
        DataError: it holds what JSON cannot say.
    """
    with as_json(name):
        return canonical_json(dict(value)).decode()


@contextmanager
def as_json(name: str) -> Iterator[None]:
    """Turn the ValueError of a value that JSON cannot say into a DataError that names it."""
    try:
        yield
    except ValueError as error:
        raise DataError(
            f"{name} cannot be written as JSON: {error}.", "Use text, finite numbers, lists and mappings."
        ) from error
