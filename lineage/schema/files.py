"""The schema as files: numbered ones for tables, and one for each view and macro.

A numbered file is never changed once it is released: a ledger records the digest of each as it was applied. Views and
macros hold nothing, so that a changed one is changed in its file, and created anew whenever a ledger is migrated. The
numbered files up to 012 created views and macros too; from 013 on they say which views and macros they go with.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from graphlib import TopologicalSorter
from importlib.resources import files

import duckdb

from gradtrail.digests import sha256_json

LAST_WITH_VIEWS = 12
"""The last numbered file that creates views and macros itself."""

_NEITHER_CODE = re.compile(r"--[^\n]*|'[^']*'")


@dataclass(frozen=True)
class SchemaFile:
    """One numbered file; its name starts with its version, for example `001_tables.sql`."""

    version: int
    name: str
    text: str


def schema_files() -> tuple[SchemaFile, ...]:
    """All numbered files of this gradtrail, in order of version."""
    return _numbered()


def schema_files_until(version: int) -> tuple[SchemaFile, ...]:
    """The numbered files that make a ledger of that version."""
    return tuple(each for each in schema_files() if each.version <= version)


def newest_version() -> int:
    """The schema version this gradtrail writes."""
    return schema_files()[-1].version


def create_schema(connection: duckdb.DuckDBPyConnection, version: int, above: int = 0) -> None:
    """Bring the schema of a database from one version to another, rows aside.

    Views and macros are created anew where `version` is the newest: those of versions between are not kept.
    """
    for each in schema_files_until(version):
        if each.version > above:
            connection.execute(each.text)
    if LAST_WITH_VIEWS < version == newest_version():
        for text in definitions().values():
            connection.execute(text)


@cache
def definitions() -> dict[str, str]:
    """The statements of every view and macro by its name, each after those that it names."""
    folder = files("gradtrail.lineage").joinpath("schema")
    texts = {
        entry.name.removesuffix(".sql"): entry.read_text("utf-8")
        for kind in ("views", "macros")
        for entry in folder.joinpath(kind).iterdir()
        if entry.name.endswith(".sql")
    }
    words = {name: set(re.findall(r"\w+", _NEITHER_CODE.sub("", text))) for name, text in texts.items()}
    needs = {name: sorted(words[name] & texts.keys() - {name}) for name in sorted(texts)}
    return {name: texts[name] for name in TopologicalSorter(needs).static_order()}


def definitions_sha256() -> str:
    """Digest of all views and macros; a numbered file after 012 says it, so that a change of them needs a new one."""
    return sha256_json(dict(sorted(definitions().items())))


@cache
def _numbered() -> tuple[SchemaFile, ...]:
    folder = files("gradtrail.lineage").joinpath("schema")
    named = sorted((entry for entry in folder.iterdir() if entry.name.endswith(".sql")), key=lambda entry: entry.name)
    return tuple(SchemaFile(int(entry.name.split("_")[0]), entry.name, entry.read_text("utf-8")) for entry in named)
