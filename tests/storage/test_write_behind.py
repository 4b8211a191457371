from __future__ import annotations

import threading

import pytest

from gradtrail.storage.files.writing_behind import write_behind


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


def test_no_more_batches_are_made_than_may_wait():
    made, may_write = [], threading.Event()

    def batches():
        for number in range(10):
            made.append(number)
            yield number
            if number == 3:
                assert made == [0, 1, 2, 3]
                may_write.set()

    def write(batch):
        assert may_write.wait(10)
        return batch

    assert [written for _, written in write_behind(batches(), write, ahead=4)] == list(range(10))


def test_after_a_failed_write_those_that_waited_are_not_written():
    written, all_made = [], threading.Event()

    def batches():
        yield from range(3)
        all_made.set()

    def write(batch):
        assert all_made.wait(10)
        written.append(batch)
        raise OSError(f"no room for {batch}")

    with pytest.raises(OSError, match="no room for 0"):
        list(write_behind(batches(), write, ahead=3))
    assert written == [0]
