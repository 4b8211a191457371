"""From every earlier version: what was recorded then is there after the migration, under the same ids, and verifies."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import duckdb
import pytest

from gradtrail.errors import LedgerError
from gradtrail.lineage.chain import rows
from gradtrail.lineage.ledger import migrations
from gradtrail.lineage.ledger.migrations import version_of
from gradtrail.lineage.ledger.writing import Ledger
from gradtrail.lineage.read import queries
from gradtrail.lineage.schema import files
from gradtrail.lineage.schema.files import newest_version, schema_files
from gradtrail.lineage.schema.tables import TABLES, Table, tables_at
from gradtrail.lineage.sql.answering import run_sql
from gradtrail.lineage.verify.verifying import verify_ledger

# The first version that can be written is 3: 001 to 003 were released together.
EARLIER = [each.version for each in schema_files() if 3 <= each.version < newest_version()]
STORY_TABLES = (
    "dataset_version",
    "example",
    "training_run",
    "checkpoint",
    "model_version",
    "model_version_checkpoint",
    "gradient_index",
    "weighting",
    "fidelity",
    "output",
    "audit",
    "audit_output",
    "audit_index",
    "attribution",
    "share",
    "example_influence",
    "finding",
    "report",
    "quarantine",
)


def _rows(ledger: Ledger, version: int) -> dict[str, list[tuple[Any, ...]]]:
    """All rows, in the columns that a ledger of that version has."""
    columns = {name: ", ".join((*table.schema.names, "event_sequence", "salt")) for name, table in _tables(version)}
    columns["event"] = "*"
    with ledger.read_unmigrated() as connection:
        return {
            name: connection.execute(f"SELECT {asked} FROM {name} ORDER BY ALL").fetchall()  # noqa: S608 - our names
            for name, asked in columns.items()
        }


def _tables(version: int) -> Iterator[tuple[str, Table]]:
    return ((name, table) for name, table in tables_at(version).items() if name in STORY_TABLES)


@pytest.mark.parametrize("version", EARLIER)
def test_a_ledger_of_an_earlier_version_keeps_every_row_and_verifies(
    version: int, story, empty_ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    everything = schema_files()
    if version < 4:  # the first to hold contributions of parameter groups
        del story.evidence["group_contributions"]
    tables_then = {**TABLES, **tables_at(version)}
    with monkeypatch.context() as earlier:
        released = tuple(each for each in everything if each.version <= version)
        for module in (files, migrations):
            earlier.setattr(module, "schema_files", lambda: released)
        earlier.setattr(rows, "TABLES", tables_then)
        story.record(empty_ledger)
        empty_ledger.publish_snapshot()
        with empty_ledger.read_unmigrated() as connection:
            assert version_of(connection) == version
    before = _rows(empty_ledger, version)
    assert all(before.values())
    # Reading migrates, and so does a snapshot that is read through the ledger.
    with empty_ledger.read_snapshot() as connection:
        assert version_of(connection) == newest_version()
        assert queries.upstream(connection, "inbox:0")[0].node_id == "inbox:0"
        assert queries.audit(connection, story.audit.audit_id) == story.audit
    after = _rows(empty_ledger, version)
    assert {name: after[name] for name in STORY_TABLES} == {name: before[name] for name in STORY_TABLES}
    assert after["event"][: len(before["event"])] == before["event"]
    assert after["event"][-1][2:4] == ("schema", f"version {newest_version()}")
    report = verify_ledger(empty_ledger)
    assert report.problems == ()
    assert not story.record_report(empty_ledger)


def test_the_story_fills_every_table_that_a_migration_could_harm() -> None:
    assert set(STORY_TABLES) <= set(TABLES)


def test_a_snapshot_of_a_newer_version_is_refused_by_name(story_ledger: Ledger) -> None:
    with duckdb.connect(str(story_ledger.paths.snapshot)) as connection:
        connection.execute("INSERT INTO schema_version VALUES (99, '099_future.sql', 'ff', 1, 'x'::BLOB)")
    for ask in (
        lambda: run_sql(story_ledger.paths.snapshot, "SELECT 1"),
        story_ledger.read_snapshot,
    ):
        with pytest.raises(LedgerError, match=r"schema version 99; .* Install the newer gradtrail"):
            ask()
