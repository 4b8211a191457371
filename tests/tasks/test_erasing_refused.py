"""Erasing what was refused, waits, or lies behind a link: no byte of it stays in home, reports and their copies."""

import json

import pytest

from gradtrail.errors import NotFoundError
from gradtrail.lineage.erasure.plan import ERASED, ErasureRequest
from gradtrail.lineage.verify.verifying import verify_ledger
from gradtrail.storage.sources.spool import open_spool
from gradtrail.tasks.collecting import collect_source
from gradtrail.tasks.govern.erasing import erase_data, preview_erasure

MARKER = "Jo-Example-of-Elm-Street"


def record(number, **changes):
    made = {
        "record_id": f"r{number}",
        "model": "digits",
        "version": 1,
        "prediction": number,
        "label": 1,
        "note": "plain",
    }
    return made | {"time": f"2026-02-01T00:00:{number:02d}+00:00"} | changes


def collect(known):
    return collect_source.fn(known.workspace, known.workspace.home_source)


def files_with_marker(known):
    home = known.workspace.root
    return sorted(
        str(path.relative_to(home))
        for path in home.rglob("*")
        if path.is_file() and MARKER.encode() in path.read_bytes()
    )


@pytest.fixture
def planted(known, tmp_path):
    """Records with the marker in every field, good and bad: taken, waiting, refused, and behind links."""
    fields = ("model", "version", "time", "prediction", "label", "note", "source")
    records = [record(0), *(record(number, **{field: MARKER}) for number, field in enumerate(fields, start=1))]
    records += [record(8, note=[MARKER, float("nan")]), record(9, version=2, note=MARKER), {"note": MARKER}]
    inbox = known.workspace.inbox
    inbox.mkdir()
    lines = "".join(json.dumps(each) + "\n" for each in records)
    (inbox / "day.jsonl").write_text(lines + f'{{"note": {MARKER}}}\n')
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "one.jsonl").write_text(json.dumps(record(20, note=MARKER)) + "\n" + json.dumps(record(21)) + "\n")
    (elsewhere / "two.jsonl").write_text(json.dumps(record(22, prediction=None, note=MARKER)) + "\n")
    (inbox / "one.jsonl").symlink_to(elsewhere / "one.jsonl")
    (inbox / "two.jsonl").symlink_to(elsewhere / "two.jsonl")
    return known


def test_one_marker_in_every_field_of_every_kind_of_record_is_in_no_byte_after_the_erasure(planted, tmp_path):
    collected = collect(planted)
    assert {name for name, _ in collected.refused} == {"r2", "r3", "r8", "row 11", "row 12", "r22"}
    measured = "inbox:r4"
    planted.ledger.record_quarantine("measuring", measured, f"{MARKER!r} is no class.")
    planted.ledger.publish_snapshot()
    assert {"ledger.duckdb", "snapshot.duckdb", "sources.sqlite"} <= set(files_with_marker(planted))
    ids = [f"inbox:r{number}" for number in (1, 2, 3, 4, 5, 6, 8, 9, 20, 22)]
    request = ErasureRequest(output_ids=(*ids, f"{MARKER}:r7", "day.jsonl:row 11", "day.jsonl:row 12"))
    assert dict(preview_erasure(planted.workspace, request).rows)["quarantine"] == 7
    outcome = erase_data(planted.workspace, request)
    # The id itself is what the ledger says was erased: here it holds the marker, as the source of r7 did.
    left = planted.sql("SELECT DISTINCT cause FROM quarantine")
    assert left == [(ERASED,)]
    assert outcome.inbox_records == 13
    assert [path for path in files_with_marker(planted) if "duckdb" not in path] == []
    assert MARKER not in (tmp_path / "elsewhere" / "one.jsonl").read_text()
    assert (planted.workspace.inbox / "one.jsonl").is_symlink()
    assert "r21" in (tmp_path / "elsewhere" / "one.jsonl").read_text()
    assert not (tmp_path / "elsewhere" / "two.jsonl").exists()
    assert not (planted.workspace.inbox / "two.jsonl").is_symlink()
    assert verify_ledger(planted.ledger).ok
    assert collect(planted).refused == ()
    assert preview_erasure(planted.workspace, request).erased == ()


def test_what_was_refused_or_waits_is_erased_alone_and_the_rest_stays(planted):
    collect(planted)
    planted.ledger.record_quarantine("measuring", "inbox:r4", f"{MARKER!r} is no class.")
    with open_spool(planted.workspace.spool) as spool:
        assert [version for _, version, _ in spool.waiting()] == [f"{MARKER}/1", "digits/2"]
    erase_data(planted.workspace, ErasureRequest(output_ids=("inbox:r9",)))
    with open_spool(planted.workspace.spool) as spool:
        assert [version for _, version, _ in spool.waiting()] == [f"{MARKER}/1"]
    before = planted.sql("SELECT count(*) FROM quarantine WHERE cause <> '(erased)'")
    erase_data(planted.workspace, ErasureRequest(output_ids=("inbox:r3",)))
    [(left,)] = planted.sql("SELECT count(*) FROM quarantine WHERE cause <> '(erased)'")
    assert left == before[0][0] - 1
    assert planted.sql("SELECT source, record_id FROM quarantine WHERE cause = '(erased)'") == [("day.jsonl", "r3")]
    with pytest.raises(NotFoundError, match="inbox:r99 is not in the ledger"):
        erase_data(planted.workspace, ErasureRequest(output_ids=("inbox:r99",)))


def test_an_erased_output_stays_out_of_the_next_audit(planted):
    collect(planted)
    planted.ledger.record_quarantine("measuring", "inbox:r4", f"{MARKER!r} is no class.")
    erase_data(planted.workspace, ErasureRequest(output_ids=("inbox:r4",)))
    assert planted.sql("SELECT source, record_id, cause FROM quarantine WHERE source = 'measuring'") == [
        ("measuring", "inbox:r4", ERASED)
    ]
