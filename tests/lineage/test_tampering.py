"""Any one row changed, dropped, added or swapped, in any table, is detected and named."""
# ruff: noqa: S608 - these tests write SQL as someone would who tampers with the file

from __future__ import annotations

import shutil
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gradtrail.lineage.erasure.erasures import erase, finish
from gradtrail.lineage.erasure.plan import ErasureRequest
from gradtrail.lineage.events.alerts import Alert, record_alerts
from gradtrail.lineage.events.pinned_files import pin_file
from gradtrail.lineage.events.revisions import record_index_revision, record_revision
from gradtrail.lineage.events.source_watermarks import record_watermark
from gradtrail.lineage.events.withdrawals import WithdrawalRequest, withdraw
from gradtrail.lineage.ledger.writing import Ledger
from gradtrail.lineage.read import listings
from gradtrail.lineage.schema.tables import TABLES
from gradtrail.lineage.verify.signatures import new_keys, sign_audit
from gradtrail.lineage.verify.verifying import verify_ledger
from gradtrail.nouns import Watermark

KINDS = ("changed", "dropped", "added", "swapped")
LATER = (
    "alert",
    "audit_signature",
    "erased_row",
    "erasure",
    "file_revision",
    "index_revision",
    "personal_attribute",
    "pinned_file",
    "watermark",
    "withdrawal",
    "withdrawn_example",
)


@pytest.fixture(scope="module")
def full(recorded_story: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The story and what came after it: signed, withdrawn, erased, written again. Copy it, never write it."""
    folder = tmp_path_factory.mktemp("full")
    shutil.copytree(recorded_story, folder, dirs_exist_ok=True)
    ledger = Ledger(folder / "ledger.duckdb", folder / "snapshot.duckdb")
    with ledger.read() as connection:
        [(audit_id,)] = connection.execute("SELECT audit_id FROM audit").fetchall()
    private, _ = new_keys(folder / "key.pem")
    sign_audit(ledger, audit_id, private)
    _record_second_dataset(ledger)
    withdraw(ledger, WithdrawalRequest("source", "forum"))
    withdraw(ledger, WithdrawalRequest(example_ids=("train-00", "train-02")))
    for request in (ErasureRequest(example_ids=("train-01",)), ErasureRequest(output_ids=("inbox:0", "inbox:1"))):
        erasure = erase(ledger, request)
        assert erasure is not None
        finish(ledger, erasure.erasure_id)
    for digest in ("ab", "cd"):
        record_revision(ledger, "report", audit_id, {"report.html": digest}, "erasure")
    with ledger.read() as connection:
        [index] = listings.indexes(connection)
    for version in (8, 9):
        record_index_revision(ledger, replace(index, table_version=version), "lost")
    for seen in (1, 2):
        record_watermark(ledger, Watermark("inbox", "inbox", datetime(2026, 1, seen, tzinfo=UTC), seen, seen))
    for digest in ("ab", "cd"):
        pin_file(ledger, "curvature/one.safetensors", digest, lambda: None)
    for state in ("due", "delivered"):
        record_alerts(ledger, [Alert(audit_id, "https://hooks.example")], state)
    assert verify_ledger(ledger).ok
    return folder


def _record_second_dataset(ledger: Ledger) -> None:
    from gradtrail.nouns import DatasetVersion, ManifestRow

    rows = [ManifestRow(f"train-{place:02d}", "00" * 32, {"author": f"author {place}"}) for place in range(4)]
    ledger.record_dataset_version(DatasetVersion("d2" * 32, "second", 4, "file:///second"), rows, ["author"])


def _other(value: Any) -> Any:
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    if isinstance(value, bytes):
        return bytes([value[0] ^ 1]) + value[1:] if value else b"x"
    if isinstance(value, dict):
        return {**value, "forged": 1.0 if any(isinstance(each, float) for each in value.values()) else "1"}
    if isinstance(value, str):
        return f"{value}x" if not value.startswith(("{", "[")) else '{"forged":1}'
    return [*value, "forged"] if isinstance(value, list) else value and value.replace(year=value.year + 1)


def _tamper(database: Path, name: str, kind: str, row: int, column: int) -> str:
    """Tamper with one row behind gradtrail's back; what was done, or nothing where it cannot be done."""
    table = TABLES[name]
    with duckdb.connect(str(database)) as connection:
        connection.execute("SET TimeZone = 'UTC'")
        columns = [*table.schema.names, "event_sequence", "salt"]
        rows = connection.execute(f"SELECT {', '.join(columns)} FROM {name} ORDER BY ALL").fetchall()
        triggers = connection.execute("SELECT trigger_name, sql FROM duckdb_triggers() WHERE table_name = ?", [name])
        guards = triggers.fetchall()
        for trigger, _ in guards:
            connection.execute(f"DROP TRIGGER {trigger} ON {name}")
        here, place = rows[row % len(rows)], column % len(columns)
        where = " AND ".join(f"{each} = ?" for each in table.key)
        key = [here[columns.index(each)] for each in table.key]
        done = ""
        if kind == "dropped":
            connection.execute(f"DELETE FROM {name} WHERE {where}", key)
            done = "row_dropped"
        elif kind == "added":
            forged = list(here)
            for each in table.key:
                forged[columns.index(each)] = _other(forged[columns.index(each)])
            marks = ", ".join("?" * len(columns))
            connection.execute(f"INSERT INTO {name} ({', '.join(columns)}) VALUES ({marks})", forged)
            done = "row_added"
        elif kind == "changed":
            value = _other(here[place])
            if columns[place] in table.key and isinstance(value, int):
                value += 1000  # the next number may be another row's, which the primary key refuses
            if value is not None:
                connection.execute(f"DELETE FROM {name} WHERE {where}", key)
                changed = [*here[:place], value, *here[place + 1 :]]
                marks = ", ".join("?" * len(columns))
                connection.execute(f"INSERT INTO {name} ({', '.join(columns)}) VALUES ({marks})", changed)
                done = "row_"
        elif len(rows) > 1:
            there = rows[(row + 1) % len(rows)]
            free = [each for each in columns if each not in table.key]
            swapped = free[column % len(free)]
            index = columns.index(swapped)
            if here[index] != there[index]:
                for target, value in ((here, there[index]), (there, here[index])):
                    names = [target[columns.index(each)] for each in table.key]
                    connection.execute(f"UPDATE {name} SET {swapped} = ? WHERE {where}", [value, *names])
                done = "row_"
        for _, definition in guards:
            connection.execute(definition)
        return done


def _is_named(folder: Path, scratch: Path, name: str, kind: str, row: int, column: int) -> None:
    shutil.copy(folder / "ledger.duckdb", scratch / "ledger.duckdb")
    expected = _tamper(scratch / "ledger.duckdb", name, kind, row, column)
    report = verify_ledger(Ledger(scratch / "ledger.duckdb", scratch / "absent.duckdb"))
    named = [problem for problem in report.problems if problem.subject.split(" ")[0] == name]
    if expected:
        assert [problem for problem in named if problem.kind.startswith(expected)], (name, kind, row, column, report)
    else:
        assert report.ok


def _filled(folder: Path) -> list[str]:
    with duckdb.connect(str(folder / "ledger.duckdb"), read_only=True) as connection:
        names = {row[0] for row in connection.execute("SELECT table_name FROM duckdb_tables()").fetchall()}
        # A forged schema version makes another gradtrail's ledger of it, which is refused before it is verified.
        names &= TABLES.keys() - {"schema_version"}
        counts = {name: connection.execute(f"SELECT count(*) FROM {name}").fetchall()[0][0] for name in names}
    return sorted(name for name, count in counts.items() if count)


def test_there_are_rows_to_tamper_with(full: Path) -> None:
    assert set(_filled(full)) >= {*LATER, "attribution", "audit", "example", "finding", "output", "report", "share"}


@given(data=st.data())
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_one_tampered_row_anywhere_is_named(data: st.DataObject, full: Path, tmp_path: Path) -> None:
    name = data.draw(st.sampled_from(_filled(full)))
    kind, row, column = data.draw(st.sampled_from(KINDS)), data.draw(st.integers(0, 30)), data.draw(st.integers(0, 15))
    _is_named(full, tmp_path, name, kind, row, column)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_every_column_of_every_table_is_guarded(kind: str, full: Path, tmp_path: Path) -> None:
    for name in _filled(full):
        for column in range(len(TABLES[name].schema.names) + 2):
            _is_named(full, tmp_path, name, kind, column, column)


def test_a_ledger_with_one_more_attribute_of_the_same_example_is_noticed(full: Path, tmp_path: Path) -> None:
    shutil.copy(full / "ledger.duckdb", tmp_path / "ledger.duckdb")
    with duckdb.connect(str(tmp_path / "ledger.duckdb")) as connection:
        connection.execute(
            "INSERT INTO personal_attribute SELECT * REPLACE ('email' AS name) FROM personal_attribute LIMIT 1"
        )
    [problem] = verify_ledger(Ledger(tmp_path / "ledger.duckdb", tmp_path / "absent.duckdb")).problems
    assert problem.kind == "row_added"
    assert problem.subject.endswith('"email"]')
