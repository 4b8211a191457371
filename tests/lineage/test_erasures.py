"""Erased rows are gone to the last byte, the chain holds, and only what an event explains may be missing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import duckdb
import pytest

from gradtrail.errors import DataError, NotFoundError
from gradtrail.lineage.erasure.erasures import erase, finish, plan_erasure, unfinished
from gradtrail.lineage.erasure.plan import ErasureRequest
from gradtrail.lineage.erasure.rewriting import rewrite_database
from gradtrail.lineage.events.withdrawals import WithdrawalRequest, withdraw, withdrawn
from gradtrail.lineage.ledger.writing import Ledger
from gradtrail.lineage.read import queries
from gradtrail.lineage.verify.verifying import verify_ledger
from gradtrail.nouns import Finding, Share

AUTHOR = frozenset({"author"})


def _manifest(story: Any) -> list[Any]:
    return [
        replace(row, attributes={**row.attributes, "author": f"Jane Secret {place % 3}"})
        for place, row in enumerate(story.manifest)
    ]


@pytest.fixture
def personal(story, empty_ledger: Ledger) -> Ledger:
    """The story with authors in the erasable table, published."""
    empty_ledger.record_dataset_version(story.dataset, _manifest(story), AUTHOR)
    replace(story, manifest=tuple(_manifest(story))).record(empty_ledger)
    empty_ledger.publish_snapshot()
    return empty_ledger


@pytest.fixture
def inline(story, empty_ledger: Ledger) -> Ledger:
    """The same as recorded before authors were declared personal."""
    replace(story, manifest=tuple(_manifest(story))).record(empty_ledger)
    return empty_ledger


def _holds(ledger: Ledger, text: str) -> bool:
    return any(text.encode() in path.read_bytes() for path in ledger.paths.database.parent.iterdir())


def _finish(ledger: Ledger) -> None:
    rewrite_database(ledger)
    with ledger.read() as connection:
        pending = unfinished(connection)
    for erasure in pending:
        finish(ledger, erasure.erasure_id)
    ledger.publish_snapshot()


def test_personal_attributes_are_kept_apart_and_recording_again_adds_nothing(story, personal: Ledger) -> None:
    with personal.read() as connection:
        assert connection.execute("SELECT count(*) FROM example WHERE attributes['author'] IS NOT NULL").fetchall() == [
            (0,)
        ]
        assert queries.personal_names(connection, story.dataset.dataset_version_id) == AUTHOR
    assert personal.record_dataset_version(story.dataset, _manifest(story)) is False
    assert personal.record_dataset_version(story.dataset, _manifest(story), {"licence"}) is False


def test_an_erased_example_leaves_no_byte_and_the_chain_holds(personal: Ledger) -> None:
    erasure = erase(personal, ErasureRequest(example_ids=("train-01",)), "asked for")
    other = erase(personal, ErasureRequest(person="Jane Secret 2"))
    assert erasure is not None
    assert other is not None
    assert erasure.rows == (("personal_attribute", 1),)
    assert [name for _, name in other.subjects] == ["train-02", "train-05", "train-08", "train-11"]
    report = verify_ledger(personal)
    assert {problem.kind for problem in report.problems} == {"erasure_unfinished"}
    _finish(personal)
    report = verify_ledger(personal)
    assert report.ok
    assert report.bytes_sealed
    assert f"1 row of personal_attribute erased by event {erasure.event_sequence}." in report.notes
    assert not _holds(personal, "Jane Secret 2")
    assert _holds(personal, "Jane Secret 1")


def test_what_is_erased_already_is_not_erased_again(personal: Ledger) -> None:
    request = ErasureRequest(example_ids=("train-01",), output_ids=("inbox:0",))
    assert erase(personal, request) is not None
    assert erase(personal, request) is None
    with personal.read() as connection:
        assert plan_erasure(connection, request) is None


def test_an_erased_output_keeps_its_figures_and_loses_what_it_said(personal: Ledger, story) -> None:
    erasure = erase(personal, ErasureRequest(output_ids=("inbox:1",)))
    assert erasure is not None
    with personal.read() as connection:
        details = queries.audit_details(connection, story.audit.audit_id)
    assert [(result.prediction, result.loss) for result in details.results] == [("a seven", 0.25), ("", 0.25)]
    assert verify_ledger(personal).notes == (f"1 row of audit_output erased by event {erasure.event_sequence}.",)


GRAPH = (
    "FROM upstream('inbox:1')",
    "FROM upstream('inbox:1', as_of := '{audit}')",
    "FROM upstream('{audit}', as_of := '{audit}')",
    "FROM downstream('train-00', as_of := '{audit}')",
    "FROM blast_radius('train-00', as_of := '{audit}')",
    "FROM unseen_by_blast_radius('train-00', as_of := '{audit}')",
    "FROM edge ORDER BY ALL",
    "SELECT * EXCLUDE (attributes) FROM output_lineage ORDER BY ALL",
)


@pytest.mark.parametrize("question", GRAPH)
def test_the_graph_stands_as_it_stood_before_the_erasure(inline: Ledger, story, question: str) -> None:
    def answer() -> list[Any]:
        with inline.read() as connection:
            return connection.execute(question.format(audit=story.audit.audit_id)).fetchall()

    before = answer()
    request = ErasureRequest(output_ids=("inbox:0", "inbox:1"), person="Jane Secret 0", personal_names=AUTHOR)
    assert erase(inline, request) is not None
    assert before
    assert answer() == before


def test_attributes_from_before_they_were_personal_are_taken_out_of_their_row(inline: Ledger, story) -> None:
    erasure = erase(inline, ErasureRequest(example_ids=("train-01",), personal_names=AUTHOR))
    assert erasure is not None
    assert erasure.rows == (("example", 1),)
    erase(inline, ErasureRequest(person="Jane Secret 2", personal_names=AUTHOR))
    with inline.read() as connection:
        examples = queries.examples(connection, story.dataset.dataset_version_id, ["train-00", "train-01", "train-02"])
    assert examples["train-00"].attributes["author"] == "Jane Secret 0"
    assert set(examples["train-01"].attributes) == set(examples["train-02"].attributes) == {"source", "licence"}
    _finish(inline)
    assert verify_ledger(inline).ok
    assert not _holds(inline, "Jane Secret 2")


def test_a_person_goes_out_of_shares_findings_and_withdrawals_too(story, empty_ledger: Ledger) -> None:
    jane = "Jane Secret 2"
    evidence = {
        **story.evidence,
        "shares": [*story.evidence["shares"], Share(None, "proponent", "author", jane, 0.4, 0.25)],
        "findings": [
            Finding("share-of-author", "low", f"Data with author “{jane}” carry 40%.", None, {"value": jane, "n": [1]}),
            Finding("other", "low", f"Data with author “{jane} Junior” carry 4%.", None, {"value": f"{jane} Junior"}),
        ],
    }
    replace(story, manifest=tuple(_manifest(story)), evidence=evidence).record(empty_ledger)
    withdraw(empty_ledger, WithdrawalRequest("author", jane))
    request = ErasureRequest(person=jane, personal_names=AUTHOR)
    erasure = erase(empty_ledger, request)
    assert erasure is not None
    assert dict(erasure.rows) == {"example": 4, "share": 1, "withdrawal": 1, "finding": 1}
    assert {kind for kind, _ in erasure.subjects} == {"attribute", "audit", "withdrawal"}
    with empty_ledger.read() as connection:
        details = queries.audit_details(connection, story.audit.audit_id)
        assert ("author", "(erased)", 0.4) in {(each.attribute, each.value, each.share) for each in details.shares}
        assert [(each.message, each.evidence) for each in details.findings] == [
            ("Data with author “(erased)” carry 40%.", {"value": "(erased)", "n": [1]}),
            (f"Data with author “{jane} Junior” carry 4%.", {"value": f"{jane} Junior"}),
        ]
        assert withdrawn(connection).values == {}
        assert withdrawn(connection).example_ids == {"train-02", "train-05", "train-08", "train-11"}
    _finish(empty_ledger)
    assert verify_ledger(empty_ledger).ok
    assert not _holds(empty_ledger, f"{jane}”")
    with pytest.raises(NotFoundError):
        erase(empty_ledger, request)


def test_two_people_of_one_row_are_erased_one_after_the_other(story, empty_ledger: Ledger) -> None:
    people = {0: ("Jane", "X"), 1: ("Jane", "Bob"), 2: ("Y", "Bob")}
    manifest = tuple(
        replace(row, attributes={**row.attributes, "author": author, "photographer": photographer})
        for place, row in enumerate(story.manifest)
        for author, photographer in [people.get(place, ("Z", "Z"))]
    )
    evidence = {
        **story.evidence,
        "findings": [
            Finding("drift", "low", "Data of “Jane” and of “Bob” moved.", None, {"values": ["Jane", "Bob"]}),
            Finding("share", "low", "Data of “Bob” carry 40%.", None, {"value": "Bob"}),
        ],
    }
    replace(story, manifest=manifest, evidence=evidence).record(empty_ledger)
    names = frozenset({"author", "photographer"})
    for person in ("Jane", "Bob"):
        erasure = erase(empty_ledger, ErasureRequest(person=person, personal_names=names))
        assert erasure is not None
        assert dict(erasure.rows) == {"example": 2, "finding": 1 if person == "Jane" else 2}
    _finish(empty_ledger)
    assert verify_ledger(empty_ledger).ok
    assert not _holds(empty_ledger, "Jane")
    assert not _holds(empty_ledger, "Bob")


def test_strangers_cannot_be_erased_and_nothing_changes(personal: Ledger, all_rows) -> None:
    before = all_rows(personal)
    for request in (
        ErasureRequest(example_ids=("train-99",)),
        ErasureRequest(output_ids=("inbox:99",)),
        ErasureRequest(person="Nobody"),
    ):
        with pytest.raises(NotFoundError):
            erase(personal, request)
    assert all_rows(personal) == before


def test_an_absence_that_no_event_explains_is_tampering(personal: Ledger, tamper: Callable[..., None]) -> None:
    erase(personal, ErasureRequest(example_ids=("train-01",)))
    tamper(personal, "DELETE FROM personal_attribute WHERE example_id = 'train-02'")
    dropped = [problem.subject for problem in verify_ledger(personal).problems if problem.kind == "row_dropped"]
    assert len(dropped) == 1
    assert '"train-02","author"' in dropped[0]


def test_a_forged_tombstone_is_found(personal: Ledger, tamper: Callable[..., None]) -> None:
    erase(personal, ErasureRequest(example_ids=("train-01",)))
    tamper(
        personal,
        "DELETE FROM personal_attribute WHERE example_id = 'train-02'",
        "INSERT INTO erased_row SELECT erased_event, table_name, 2, erasure_id, event_sequence, salt FROM erased_row",
    )
    added = [problem.subject for problem in verify_ledger(personal).problems if problem.kind == "row_added"]
    assert added == ['erased_row [2,"personal_attribute",2]']


def test_a_row_that_is_back_after_its_erasure_is_named(personal: Ledger, tamper: Callable[..., None]) -> None:
    with personal.read() as connection:
        columns = connection.execute("SELECT * FROM personal_attribute WHERE example_id = 'train-01'").fetchall()[0]
    erase(personal, ErasureRequest(example_ids=("train-01",)))
    with duckdb.connect(str(personal.paths.database)) as connection:
        connection.execute("INSERT INTO personal_attribute VALUES (?, ?, ?, ?, ?, ?)", list(columns))
        ((erasing,),) = connection.execute("SELECT DISTINCT event_sequence FROM erased_row").fetchall()
    (problem,) = (problem for problem in verify_ledger(personal).problems if problem.kind == "row_added")
    assert problem.subject.startswith("personal_attribute [")
    assert '"train-01"' in problem.subject
    assert problem.message == f"the row was erased by event {erasing}, and is there again"


def test_the_guard_against_deletion_is_back_after_an_erasure(personal: Ledger) -> None:
    erase(personal, ErasureRequest(example_ids=("train-01",)))
    with (
        duckdb.connect(str(personal.paths.database)) as connection,
        pytest.raises(duckdb.Error, match="append-only: a row of personal_attribute cannot be deleted"),
    ):
        connection.execute("DELETE FROM personal_attribute")


def test_a_manifest_that_still_has_what_was_erased_is_refused(story, personal: Ledger) -> None:
    erase(personal, ErasureRequest(example_ids=("train-01",)))
    with pytest.raises(DataError, match="recorded already with other rows in personal_attribute"):
        personal.record_dataset_version(story.dataset, _manifest(story))


def test_a_rewritten_ledger_is_written_and_read_as_before(personal: Ledger, all_rows) -> None:
    before = all_rows(personal)
    rewrite_database(personal)
    assert all_rows(personal) == before
    assert personal.record_quarantine("inbox", "later", "no label")
    assert verify_ledger(personal).ok
    assert sorted(path.name for path in personal.paths.database.parent.iterdir()) == [
        "ledger.duckdb",
        "snapshot.duckdb",
        "snapshot.duckdb.lock",
        "snapshot.duckdb.seal.json",
    ]


WRITE_AND_DIE = """
import os, signal, sys
from pathlib import Path
from gradtrail.lineage.ledger.writing import Ledger
ledger = Ledger(Path(sys.argv[1]), Path(sys.argv[2]))
with ledger.transaction() as connection:
    values = "'q' || i, 's', 'r', repeat('x', 500), 1, 'salt'::BLOB"
    connection.execute(f"INSERT INTO quarantine SELECT {values} FROM range(60000) t(i)")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_writer_killed_half_way_is_a_note_and_no_false_alarm(story_ledger: Ledger) -> None:
    arguments = [str(story_ledger.paths.database), str(story_ledger.paths.snapshot)]
    killed = subprocess.run([sys.executable, "-c", WRITE_AND_DIE, *arguments], env=os.environ, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert story_ledger.interrupted_writers()
    report = verify_ledger(story_ledger)
    assert report.ok
    if not report.bytes_sealed:
        assert "killed half-way" in report.notes[0]
    story_ledger.publish_snapshot()
    assert not story_ledger.interrupted_writers()
    report = verify_ledger(story_ledger)
    assert (report.ok, report.bytes_sealed, report.notes) == (True, True, ())
