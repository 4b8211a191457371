"""Nouns with their files where these are now; the ledger has paths relative to the home folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any, TypeVar

import duckdb

from gradtrail.lineage.read.answers import RecordedReport
from gradtrail.lineage.schema.home_paths import home_of, to_read
from gradtrail.nouns import Checkpoint, DatasetVersion, Index

Placed = TypeVar("Placed", DatasetVersion, Checkpoint, Index, RecordedReport)

_PLACES = frozenset({"manifest_uri", "weights_uri", "table_uri", "html_uri"})


def located(connection: duckdb.DuckDBPyConnection, nouns: Sequence[Placed]) -> list[Placed]:
    """The nouns with absolute paths, below the home folder whose ledger or snapshot is open."""
    home = home_of(connection)
    found = []
    for noun in nouns:
        names = _PLACES & {field.name for field in fields(noun)}
        now: dict[str, Any] = {name: to_read(getattr(noun, name), home) for name in names}
        found.append(replace(noun, **now))
    return found
