"""Taking records out of an inbox while others write into it: nothing that was handed over is lost."""

import os
import stat
from datetime import UTC, datetime

import pytest

import gradtrail
from gradtrail.storage.sources.config import SourceConfig
from gradtrail.storage.sources.inbox import read_inbox
from gradtrail.storage.sources.inbox_erasure import remove_records


@pytest.fixture
def home(tmp_path):
    (tmp_path / "inbox").mkdir()
    return tmp_path


def source(home):
    return SourceConfig("inbox", "inbox", location=str(home / "inbox"))


def call(home, name):
    return gradtrail.record_output(model="digits", version=3, prediction=1, record_id=name, home=home)


def recorded(home):
    return sorted(
        f"inbox:{row.record['record_id']}" for file in read_inbox(home / "inbox") for row in file.rows() if row.record
    )


def test_a_process_whose_file_was_written_anew_goes_on_in_another(home):
    call(home, "a"), call(home, "b")
    [path] = (home / "inbox").iterdir()
    path.chmod(0o640)
    assert remove_records(source(home), {"inbox:a"}).records == 1
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    call(home, "c"), call(home, "d")
    assert recorded(home) == ["inbox:b", "inbox:c", "inbox:d"]
    assert remove_records(source(home), {"inbox:b", "inbox:c", "inbox:d"}).records == 3
    call(home, "e")
    assert recorded(home) == ["inbox:e"]
    [path] = (home / "inbox").iterdir()
    path.rename(home / "inbox" / "rotated.jsonl")
    call(home, "f")
    assert recorded(home) == ["inbox:e", "inbox:f"]
    assert len(list((home / "inbox").iterdir())) == 2


def test_no_call_is_lost_while_records_are_taken_out(home):
    said, saying = os.pipe()
    if not (child := os.fork()):
        try:
            with os.fdopen(saying, "w", buffering=1) as stream:
                for number in range(500):
                    print(call(home, f"r{number}"), file=stream)
        finally:
            os._exit(0)
    os.close(saying)
    given, removed = [], 0
    with os.fdopen(said) as stream:
        for output_id in stream:
            given.append(output_id.strip())
            if len(given) % 50 == 0:
                removed += remove_records(source(home), {given[-1]}).records
    os.waitpid(child, 0)
    assert removed == 10
    assert recorded(home) == sorted(set(given) - set(given[49::50]))
    assert len(recorded(home)) == 490


@pytest.mark.parametrize("moment", ["before it is renamed", "after it is renamed"])
def test_what_another_program_appends_meanwhile_is_taken_up(home, monkeypatch, moment):
    path = home / "inbox" / "a.jsonl"
    made = '{{"record_id": "{}", "model": "digits", "version": 3, "time": "%s", "prediction": 1}}\n'
    made %= datetime(2026, 2, 1, tzinfo=UTC).isoformat()
    path.write_text(made.format("a") + made.format("b"))
    with path.open("a") as stream:

        def late(function):
            def wrapped(*arguments):
                found = function(*arguments)
                stream.write(made.format("late"))
                stream.flush()
                monkeypatch.undo()
                return found

            return wrapped

        name = "fsync" if moment.startswith("before") else "replace"
        monkeypatch.setattr(os, name, late(getattr(os, name)))
        assert remove_records(source(home), {"inbox:a"}).records == 1
    assert recorded(home) == ["inbox:b", "inbox:late"]
    assert path.read_text() == made.format("b") + made.format("late")


def test_a_file_that_got_its_next_record_while_the_last_one_went_stays(home, monkeypatch):
    call(home, "a")
    [path] = (home / "inbox").iterdir()
    with path.open("a") as stream:
        flush = os.fsync

        def late(descriptor):
            flush(descriptor)
            stream.write(path.read_text().replace('"a"', '"late"'))
            stream.flush()
            monkeypatch.undo()

        monkeypatch.setattr(os, "fsync", late)
        assert remove_records(source(home), {"inbox:a"}).records == 1
    assert recorded(home) == ["inbox:late"]
