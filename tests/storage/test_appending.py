"""Large appends: plain where nobody else writes, merged where somebody might, each example once in every case."""

import fcntl
import threading
from pathlib import Path

import lancedb
import pytest

from gradtrail.errors import DataError, StoreError
from gradtrail.storage.gradients.appending import Appending

INDEX_ID = "1f" * 32


def raw_table(table):
    return lancedb.connect(str(Path(table.uri).parent)).open_table(f"index_{INDEX_ID}")


def stored_in_order(table):
    scanned = raw_table(table).search().select(["example_id"]).limit(None).to_arrow()
    return scanned.column("example_id").to_pylist()


def test_batches_come_together_into_one_commit(open_gradients, gradient_rows):
    table = open_gradients()
    before = raw_table(table).version
    with Appending(table) as appending:
        written = [appending.add(**gradient_rows(range(start, start + 4))) for start in range(0, 20, 4)]
        assert raw_table(table).count_rows() == 0
    assert (written, appending.written) == ([0] * 5, 20)
    assert raw_table(table).version == before + 1
    assert stored_in_order(table) == [f"example-{number}" for number in range(20)]


def test_a_commit_comes_when_there_are_enough_bytes_or_enough_time_has_passed(open_gradients, gradient_rows):
    table = open_gradients()
    with Appending(table, commit_bytes=1) as appending:
        assert appending.add(**gradient_rows([1, 2])) == 2
    with Appending(table, commit_seconds=0) as appending:
        assert appending.add(**gradient_rows([3])) == 1
    assert len(table.present()) == 3


def test_what_was_measured_before_a_failure_is_stored(open_gradients, gradient_rows):
    table = open_gradients()

    def fails_after_two():
        with Appending(table) as appending:
            appending.add(**gradient_rows([1, 2]))
            appending.add(**gradient_rows([3]) | {"example_ids": [""]})

    with pytest.raises(DataError, match="without example id"):
        fails_after_two()
    assert set(table.present()) == {"example-1", "example-2"}


def test_an_example_in_two_batches_of_one_commit_is_refused(open_gradients, gradient_rows):
    table = open_gradients()
    with pytest.raises(DataError, match="more than once in one batch: example-3"):
        table.store([table.prepare(**gradient_rows([1, 3])), table.prepare(**gradient_rows([3, 4]))])
    assert table.present() == {}


def test_a_second_writer_is_noticed_and_nothing_is_written_twice(open_gradients, gradient_rows):
    first, second = open_gradients(), open_gradients()
    assert first.append(**gradient_rows(range(5))) == 5
    assert second.append(**gradient_rows(range(3, 8))) == 3
    # `first` does not know of 5, 6 and 7: it must not append them plainly.
    assert first.append(**gradient_rows(range(5, 10))) == 2
    assert second.append(**gradient_rows(range(8, 12))) == 2
    assert sorted(stored_in_order(first)) == sorted(f"example-{number}" for number in range(12))
    first.seal(first.present())
    assert first.verify() == []


def test_many_writers_in_threads_store_overlapping_examples_once(open_gradients, gradient_rows):
    written = []

    def write(shift):
        table = open_gradients()
        for start in range(0, 40, 10):
            written.append(table.append(**gradient_rows(range(start + shift, start + shift + 10))))

    writers = [threading.Thread(target=write, args=(shift,)) for shift in (0, 5, 10)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    stored = stored_in_order(open_gradients())
    assert len(stored) == len(set(stored)) == sum(written) == 50


def test_a_disk_without_file_locks_merges_as_an_object_store_does(open_gradients, gradient_rows, monkeypatch):
    def refuse(stream, operation):
        raise OSError("no locks on this disk")

    monkeypatch.setattr(fcntl, "flock", refuse)
    first, second = open_gradients(), open_gradients()
    assert first.append(**gradient_rows(range(5))) == 5
    assert second.append(**gradient_rows(range(3, 8))) == 3
    assert first.append(**gradient_rows(range(10))) == 2
    assert len(stored_in_order(first)) == 10


def test_a_store_whose_lock_cannot_be_made_says_so(open_gradients, gradient_rows):
    table = open_gradients()
    Path(table.uri).with_suffix(".lock").mkdir()
    with pytest.raises(StoreError, match=r"\.lock failed.*folder is writable"):
        table.append(**gradient_rows([1]))
