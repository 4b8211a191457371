# ruff: noqa: S608 - these tests write SQL as someone would who tampers with the file
from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import duckdb
import pytest

from gradtrail.digests import canonical_json, sha256_json
from gradtrail.errors import LedgerError, NotFoundError
from gradtrail.lineage.chain.integrity import event_hash
from gradtrail.lineage.ledger.seal import read_seal, seal_path
from gradtrail.lineage.ledger.writing import Ledger
from gradtrail.lineage.schema.files import schema_files
from gradtrail.lineage.schema.tables import TABLES
from gradtrail.lineage.verify.signatures import new_keys, sign_audit
from gradtrail.lineage.verify.verifying import Problem, VerificationReport, verify_ledger

Tamper = Callable[..., None]

# One column of each table that an attacker might change, with the new value, and the row to pick.
CHANGES = {
    "schema_version": ("file = 'other.sql'", "version = 1", "[1]"),
    "dataset_version": ("manifest_uri = 'elsewhere'", "true", '["' + "d1" * 32 + '"]'),
    "example": (
        "attributes = MAP {'licence': 'CC0', 'source': 'forum'}",
        "example_id = 'train-05'",
        '["' + "d1" * 32 + '","train-05"]',
    ),
    "training_run": ("started_at = started_at + INTERVAL 1 MICROSECOND", "true", '["run-1"]'),
    "checkpoint": ("weights_sha256 = '00'", "checkpoint_id LIKE 'c2%'", '["' + "c2" * 32 + '"]'),
    "model_version": ("adapter = 'other:Adapter'", "true", '["digits/1"]'),
    "model_version_checkpoint": ("learning_rate = 0.3", "position = 1", '["digits/1",1]'),
    "gradient_index": ("uncovered = []", "true", None),
    "weighting": ("group_weights = MAP {'conv': 2.0}", "true", None),
    "fidelity": ("value = 0.99", "true", None),
    "output": ("produced_at = produced_at - INTERVAL 1 DAY", "output_id = 'inbox:3'", '["inbox:3"]'),
    "audit": ("method_notes = '{}'", "true", None),
    "audit_output": ("reproduced = NOT reproduced", "output_id = 'inbox:1'", '"inbox:1"]'),
    "audit_index": ("index_id = '00'", "true", None),
    "attribution": (
        "score = score + 1e-9",
        "output_id = 'inbox:0' AND example_id = 'train-01'",
        '"inbox:0","train-01"]',
    ),
    "share": ("interval_low = NULL", "position = 0", ",0]"),
    "group_contribution": ("group_name = 'other'", "position = 0", ",0]"),
    "example_influence": ("share = 0.51", "side = 'opponent'", '"opponent","train-03"]'),
    "finding": ("severity = 'info'", "position = 0", ",0]"),
    "report": ("html_uri = 'elsewhere'", "true", None),
    "quarantine": ("cause = 'none'", "true", None),
}

TRIED_IN_TEST_TAMPERING = {
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
}


def _told(report: VerificationReport, kind: str) -> list[str]:
    return [problem.subject for problem in report.problems if problem.kind == kind]


def test_a_ledger_as_it_was_written_is_fine(story_ledger: Ledger) -> None:
    report = verify_ledger(story_ledger)
    assert report.ok
    assert report.bytes_sealed
    assert report.checked == {"events": 10, "rows": 61 + len(schema_files()), "sealed files": 2}
    assert report.head_sequence == 10


def test_verifying_changes_no_byte(story_ledger: Ledger) -> None:
    before = story_ledger.paths.database.read_bytes()
    verify_ledger(story_ledger)
    assert story_ledger.paths.database.read_bytes() == before
    assert sorted(path.name for path in story_ledger.paths.database.parent.iterdir()) == [
        "ledger.duckdb",
        "snapshot.duckdb",
        "snapshot.duckdb.lock",
        "snapshot.duckdb.seal.json",
    ]


def test_a_ledger_that_grew_since_the_seal_is_fine(story_ledger: Ledger) -> None:
    story_ledger.record_quarantine("inbox", "later", "no label")
    report = verify_ledger(story_ledger)
    assert report.ok
    assert not report.bytes_sealed


def test_every_table_has_a_change_to_try() -> None:
    assert CHANGES.keys() == TABLES.keys() - TRIED_IN_TEST_TAMPERING


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_row_is_named_by_table_and_key(name: str, story_ledger: Ledger, tamper: Tamper) -> None:
    change, condition, key = CHANGES[name]
    tamper(story_ledger, f"UPDATE {name} SET {change} WHERE {condition}")
    report = verify_ledger(story_ledger)
    [subject] = _told(report, "row_changed")
    assert subject.startswith(f"{name} [")
    assert subject.endswith(key or "]")
    assert {problem.kind for problem in report.problems} == {"row_changed", "file_damaged"}


def test_changed_salts_and_event_numbers_are_changes_too(story_ledger: Ledger, tamper: Tamper) -> None:
    tamper(
        story_ledger,
        "UPDATE output SET salt = 'sixteen bytes...'::BLOB WHERE output_id = 'inbox:2'",
        "UPDATE output SET event_sequence = 3 WHERE output_id = 'inbox:4'",
    )
    report = verify_ledger(story_ledger)
    assert _told(report, "row_changed") == ['output ["inbox:2"]']
    assert _told(report, "row_dropped") == ['output ["inbox:4"]']
    assert _told(report, "row_added") == ["output"]


def test_dropped_rows_are_named(story_ledger: Ledger, tamper: Tamper) -> None:
    tamper(
        story_ledger,
        "DELETE FROM attribution WHERE output_id = 'inbox:1' AND rank = 2",
        "DELETE FROM fidelity",
        "DELETE FROM example WHERE example_id = 'train-11'",
    )
    dropped = _told(verify_ledger(story_ledger), "row_dropped")
    assert len(dropped) == 4
    assert dropped[0].endswith(',"train-11"]')
    assert dropped[1].startswith("fidelity [")
    assert [subject[-21:] for subject in dropped[2:]] == ['"inbox:1","train-01"]', '"inbox:1","train-04"]']


def test_rows_dropped_with_their_commitments_are_noticed(story_ledger: Ledger, tamper: Tamper) -> None:
    tamper(story_ledger, "DELETE FROM finding", "DELETE FROM row_commitment WHERE table_name = 'finding'")
    [problem] = [each for each in verify_ledger(story_ledger).problems if each.kind != "file_damaged"]
    assert problem.kind == "row_dropped"
    assert problem.subject == "finding"
    assert "all 2 rows that event 9 recorded are gone" in problem.message


def test_added_rows_are_named_whatever_event_they_claim(story_ledger: Ledger, tamper: Tamper) -> None:
    columns = "'inbox', record_id, produced_at, model_version_id, payload_sha256, target"
    tamper(
        story_ledger,
        f"INSERT INTO output SELECT 'forged', {columns}, event_sequence, salt FROM output WHERE output_id = 'inbox:0'",
        f"INSERT INTO output SELECT 'beyond', {columns}, 77, salt FROM output WHERE output_id = 'inbox:0'",
    )
    report = verify_ledger(story_ledger)
    assert _told(report, "row_added") == ['output ["forged"]', "output"]
    assert any("event 77" in problem.message for problem in report.problems)


def test_swapped_values_are_two_changed_rows(story_ledger: Ledger, tamper: Tamper) -> None:
    tamper(
        story_ledger,
        """UPDATE output SET payload_sha256 = other.payload_sha256 FROM output AS other
        WHERE (output.output_id = 'inbox:0' AND other.output_id = 'inbox:1')
            OR (output.output_id = 'inbox:1' AND other.output_id = 'inbox:0')""",
    )
    assert _told(verify_ledger(story_ledger), "row_changed") == ['output ["inbox:0"]', 'output ["inbox:1"]']


def test_changed_commitments_are_told_from_changed_rows(story_ledger: Ledger, tamper: Tamper) -> None:
    tamper(
        story_ledger,
        "UPDATE row_commitment SET row_digest = 'x'::BLOB WHERE table_name = 'output' AND position = 1",
    )
    report = verify_ledger(story_ledger)
    assert _told(report, "row_changed") == []
    assert _told(report, "commitment_changed") == ["row_commitment of event 7, output"]
    assert 'first at output ["inbox:1"]' in report.problems[0].message


def test_a_commitment_key_that_is_nonsense_is_noticed(story_ledger: Ledger, tamper: Tamper) -> None:
    tamper(
        story_ledger,
        "UPDATE row_commitment SET row_key = CASE position WHEN 1 THEN '{' WHEN 2 THEN '[null]' ELSE '7' END "
        "WHERE table_name = 'output' AND position > 0",
    )
    assert not verify_ledger(story_ledger).ok


def test_a_row_changed_together_with_its_commitment_is_noticed(story_ledger: Ledger, tamper: Tamper) -> None:
    tamper(
        story_ledger,
        "DELETE FROM finding WHERE position = 1",
        "DELETE FROM row_commitment WHERE table_name = 'finding' AND position = 1",
    )
    report = verify_ledger(story_ledger)
    assert _told(report, "commitment_changed") == ["row_commitment of event 9, finding"]
    assert "together with the rows" in report.problems[0].message


@pytest.mark.parametrize(
    "change",
    [
        "recorded_at = recorded_at + INTERVAL 1 SECOND",
        "kind = 'index'",
        "subject = 'someone else'",
        "payload = replace(payload, '\"count\":5', '\"count\":4')",
        "payload = 'not JSON'",
        "previous_hash = repeat('0', 64)",
        "event_hash = repeat('0', 64)",
    ],
)
def test_a_changed_event_is_named(change: str, story_ledger: Ledger, tamper: Tamper) -> None:
    tamper(story_ledger, f"UPDATE event SET {change} WHERE sequence = 7")
    assert _told(verify_ledger(story_ledger), "event_changed")[0] == "event 7"


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ("UPDATE example SET attributes = MAP {'source': NULL} WHERE example_id = 'train-05'", "example"),
        ("UPDATE gradient_index SET uncovered = [NULL]", "gradient_index"),
        ("UPDATE weighting SET group_weights = MAP {'conv': NULL::DOUBLE}", "weighting"),
    ],
)
def test_an_emptied_value_inside_a_list_or_map_is_a_changed_row(
    change: str, name: str, story_ledger: Ledger, tamper: Tamper
) -> None:
    tamper(story_ledger, change)
    [subject] = _told(verify_ledger(story_ledger), "row_changed")
    assert subject.startswith(f"{name} [")


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ("DELETE FROM event WHERE sequence = 9", "event_missing"),
        ("UPDATE event SET payload = 'not JSON' WHERE sequence = 9", "event_changed"),
        ("UPDATE event SET payload = '{\"rows\":{}}' WHERE sequence = 9", "event_changed"),
        (
            'UPDATE event SET payload = \'{"rows":{"audit":{"count":1e999,"root":1}}}\' WHERE sequence = 9',
            "event_changed",
        ),
        ("UPDATE event SET payload = repeat('[', 100000) WHERE sequence = 9", "event_changed"),
    ],
)
def test_the_event_of_a_signed_audit_is_named_and_so_is_its_signature(
    change: str, kind: str, story, story_ledger: Ledger, tamper: Tamper, tmp_path: Path
) -> None:
    private, _ = new_keys(tmp_path / "key.pem")
    sign_audit(story_ledger, story.audit.audit_id, private)
    tamper(story_ledger, change)
    report = verify_ledger(story_ledger)
    assert report.problems[0].kind == kind
    assert "9" in report.problems[0].subject
    assert _told(report, "signature_bad") == [f"audit {story.audit.audit_id}"]


def test_an_event_dated_before_the_one_it_follows_is_named_and_so_are_times_after_now(
    story_ledger: Ledger, tamper: Tamper
) -> None:
    assert verify_ledger(story_ledger).notes == ()
    tamper(story_ledger, "UPDATE event SET recorded_at = recorded_at - INTERVAL 3 HOUR WHERE sequence = 5")
    [note] = verify_ledger(story_ledger).notes
    assert note.startswith("Event 5 is dated ")
    assert "3 hours before the event that it follows" in note
    tamper(story_ledger, "UPDATE event SET recorded_at = recorded_at + INTERVAL 9 DAY WHERE sequence = 10")
    assert "9.0 days after this machine's clock" in verify_ledger(story_ledger).notes[-1]


def test_an_event_that_is_forged_with_its_hash_breaks_the_chain_after_it(story_ledger: Ledger, tamper: Tamper) -> None:
    with story_ledger.read() as connection:
        query = "SELECT sequence, recorded_at, kind, subject, payload, previous_hash FROM event WHERE sequence = 5"
        cursor = connection.execute(query)
        event = dict(zip([column[0] for column in cursor.description], cursor.fetchall()[0], strict=True))
    forged = event_hash(**{**event, "subject": "forged"})
    tamper(story_ledger, f"UPDATE event SET subject = 'forged', event_hash = '{forged}' WHERE sequence = 5")
    assert _told(verify_ledger(story_ledger), "event_changed") == ["event 6"]


def test_missing_events_are_named(story_ledger: Ledger, tamper: Tamper) -> None:
    tamper(story_ledger, "DELETE FROM event WHERE sequence IN (3, 4)")
    report = verify_ledger(story_ledger)
    assert _told(report, "event_missing") == ["events 3 to 4"]
    assert report.problems[0].kind == "event_missing"


def test_the_removal_of_the_last_events_shows_by_the_seal(story_ledger: Ledger, tamper: Tamper) -> None:
    evidence = ["audit", "audit_output", "audit_index", "attribution", "share", "example_influence", "finding"]
    evidence.append("group_contribution")
    tamper(
        story_ledger,
        "DELETE FROM event WHERE sequence > 8",
        *(f"DELETE FROM {name} WHERE event_sequence > 8" for name in ("row_commitment", "report", *evidence)),
    )
    report = verify_ledger(story_ledger)
    assert [(problem.kind, problem.subject) for problem in report.problems] == [("event_missing", "events 9 to 10")]
    with pytest.raises(LedgerError, match=r"does not continue what was sealed .* move .*seal\.json away"):
        story_ledger.publish_snapshot()
    seal_path(story_ledger.paths.snapshot).unlink()
    story_ledger.publish_snapshot()
    assert not verify_ledger(story_ledger).problems


def test_a_seal_that_was_taken_away_is_missed(story_ledger: Ledger, tamper: Tamper) -> None:
    evidence = ["audit", "audit_output", "audit_index", "attribution", "share", "example_influence", "finding"]
    evidence.append("group_contribution")
    tamper(
        story_ledger,
        "DELETE FROM event WHERE sequence > 8",
        *(f"DELETE FROM {name} WHERE event_sequence > 8" for name in ("row_commitment", "report", *evidence)),
    )
    path = seal_path(story_ledger.paths.snapshot)
    path.unlink()
    report = verify_ledger(story_ledger)
    assert [(problem.kind, problem.subject) for problem in report.problems] == [("seal_missing", str(path))]
    assert "its seal is gone" in report.problems[0].message
    story_ledger.paths.database.unlink()
    assert [each.kind for each in verify_ledger(story_ledger).problems] == ["seal_missing", "file_damaged"]


def test_a_history_rewritten_in_full_shows_by_the_seal(story, story_ledger: Ledger, tmp_path: Path) -> None:
    other = Ledger(tmp_path / "other" / "ledger.duckdb", tmp_path / "other" / "snapshot.duckdb")
    story.record(other)
    other.record_quarantine("inbox", "more", "than sealed")
    story_ledger.paths.database.write_bytes(other.paths.database.read_bytes())
    [problem] = verify_ledger(story_ledger).problems
    assert (problem.kind, problem.subject) == ("event_changed", "event 10")
    assert "history was rewritten" in problem.message
    before = story_ledger.paths.snapshot.read_bytes()
    with pytest.raises(LedgerError, match=r"event 10 is gone or another\. Nothing was published"):
        story_ledger.publish_snapshot()
    assert story_ledger.paths.snapshot.read_bytes() == before
    assert [each.kind for each in verify_ledger(story_ledger).problems] == ["event_changed"]


@pytest.mark.parametrize(
    ("statement", "name"),
    [
        ("DROP TRIGGER output_refuses_update ON output", "output_refuses_update"),
        ("CREATE OR REPLACE VIEW source_share AS SELECT 1 AS share", "source_share"),
        ("CREATE TABLE notes (text VARCHAR)", "notes"),
        ("DROP VIEW edge", "edge"),
        ("CREATE OR REPLACE MACRO last_event(as_of) AS 1", "last_event"),
    ],
)
def test_a_changed_schema_is_named(statement: str, name: str, story_ledger: Ledger) -> None:
    with duckdb.connect(str(story_ledger.paths.database)) as connection:
        connection.execute(statement)
    assert _told(verify_ledger(story_ledger), "schema_changed") == [name]


def test_a_changed_default_of_a_macro_is_named(story_ledger: Ledger) -> None:
    with duckdb.connect(str(story_ledger.paths.database)) as connection:
        query = "SELECT macro_definition FROM duckdb_functions() WHERE function_name = 'downstream'"
        [(body,)] = connection.execute(query).fetchall()
        takes = "start_id, start_kind := NULL, max_depth := 0, as_of := NULL"
        connection.execute(f"CREATE OR REPLACE MACRO downstream({takes}) AS TABLE {body}")
    assert _told(verify_ledger(story_ledger), "schema_changed") == ["downstream"]


@pytest.mark.parametrize("which", ["database", "snapshot"])
def test_every_flipped_byte_is_found_and_named_with_its_file(which: str, story_ledger: Ledger) -> None:
    path: Path = getattr(story_ledger.paths, which)
    original = path.read_bytes()
    chance = random.Random(20261121)  # noqa: S311 - picks places to damage
    places = {0, 8, 4096, 8192, 12288, len(original) - 1, *(chance.randrange(len(original)) for _ in range(7))}
    for place in sorted(places):
        damaged = bytearray(original)
        damaged[place] ^= 1 << chance.randrange(8)
        path.write_bytes(damaged)
        report = verify_ledger(story_ledger)
        assert [problem for problem in report.problems if problem.kind == "file_damaged"], place
        assert {problem.subject for problem in report.problems if problem.kind == "file_damaged"} == {str(path)}, place
    path.write_bytes(original)
    assert verify_ledger(story_ledger).ok


def test_every_flipped_byte_of_the_seal_is_found(story_ledger: Ledger) -> None:
    path = seal_path(story_ledger.paths.snapshot)
    original = path.read_bytes()
    for place in range(len(original)):
        damaged = bytearray(original)
        damaged[place] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(LedgerError, match="is not as gradtrail wrote it"):
            read_seal(story_ledger.paths.snapshot)
    path.write_bytes(original + b" ")
    problem = verify_ledger(story_ledger).problems[0]
    assert problem == Problem("seal_changed", str(path), f"The seal {path} is not as gradtrail wrote it.")


def test_a_missing_snapshot_or_ledger_is_named(story_ledger: Ledger) -> None:
    story_ledger.paths.snapshot.unlink()
    [problem] = verify_ledger(story_ledger).problems
    assert problem == Problem(
        "file_damaged", str(story_ledger.paths.snapshot), "the snapshot is gone, but its seal is there"
    )
    story_ledger.paths.database.unlink()
    ledger_gone, snapshot_gone = verify_ledger(story_ledger).problems
    assert ledger_gone == Problem(
        "file_damaged", str(story_ledger.paths.database), "the ledger file is gone, but its seal is there"
    )
    assert snapshot_gone == problem


def test_without_a_ledger_there_is_nothing_to_verify(empty_ledger: Ledger) -> None:
    with pytest.raises(NotFoundError, match="There is no ledger"):
        verify_ledger(empty_ledger)


def test_a_ledger_that_was_never_published_is_verified_without_a_seal(story, empty_ledger: Ledger) -> None:
    story.record(empty_ledger)
    report = verify_ledger(empty_ledger)
    assert report.ok
    assert not report.bytes_sealed
    assert report.checked["sealed files"] == 0


def test_a_ledger_held_by_someone_else_is_not_called_damaged(story_ledger: Ledger) -> None:
    impatient = Ledger(story_ledger.paths.database, story_ledger.paths.snapshot, patience_seconds=0.1)
    with story_ledger.exclusive(), pytest.raises(LedgerError, match="in use"):
        verify_ledger(impatient)


def test_a_flood_of_problems_is_cut_and_counted(
    story_ledger: Ledger, tamper: Tamper, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gradtrail.lineage.verify.content.LONGEST_LIST", 3)
    tamper(story_ledger, "DELETE FROM attribution WHERE rank < 3")
    report = verify_ledger(story_ledger)
    assert len(report.problems) == 3
    assert report.omitted == 6


def test_an_events_hash_covers_its_canonical_json(story_ledger: Ledger) -> None:
    with story_ledger.read() as connection:
        row = connection.execute(
            "SELECT sequence, strftime(recorded_at, '%Y-%m-%dT%H:%M:%S.%f+00:00'), kind, subject, payload, "
            "previous_hash, event_hash FROM event WHERE sequence = 9"
        ).fetchall()[0]
    names = ("sequence", "recorded_at", "kind", "subject", "payload", "previous_hash")
    assert sha256_json(dict(zip(names, row[:-1], strict=True))) == row[-1]
    payload = json.loads(row[4])
    assert canonical_json(payload).decode() == row[4]
    assert {name: each["count"] for name, each in payload["rows"].items()} == {
        "audit": 1,
        "audit_index": 1,
        "audit_output": 2,
        "attribution": 12,
        "share": 6,
        "example_influence": 2,
        "finding": 2,
        "group_contribution": 6,
    }
