from __future__ import annotations

import threading

import pytest

from gradtrail.storage.write_behind import write_behind


def test_every_batch_is_written_once_in_order_while_the_next_is_made():
    written, making = [], threading.Event()

    def batches():
        yield "first"
        making.set()
        yield "second"

    def write(batch):
        assert making.wait(10)  # the second batch is made before the first is written
        written.append(batch)
        return len(batch)

    assert list(write_behind(batches(), write)) == [("first", 5), ("second", 6)]
    assert written == ["first", "second"]


def test_a_failed_write_is_raised_before_another_batch_is_written():
    written = []

    def write(batch):
        written.append(batch)
        raise OSError(f"no room for {batch}")

    with pytest.raises(OSError, match="no room for 0"):
        list(write_behind(range(5), write))
    assert written == [0]


def test_when_making_a_batch_fails_those_before_it_are_stored():
    written = []

    def batches():
        yield 1
        yield 2
        raise ValueError("damaged")

    with pytest.raises(ValueError, match="damaged"):
        list(write_behind(batches(), written.append))
    assert written == [1, 2]
