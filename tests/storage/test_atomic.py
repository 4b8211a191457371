"""Files that appear whole or not at all."""

import errno
import os
from pathlib import Path

import pytest

from gradtrail.errors import StoreError
from gradtrail.storage.files.atomic import replacing, write_all_atomically, write_atomically


def test_a_full_disk_is_named_with_the_file_and_leaves_what_was_there(tmp_path):
    path = tmp_path / "report.html"
    write_atomically(path, b"before")
    with pytest.raises(StoreError, match=r"report\.html cannot be written: No space left on device\. Make room"):
        _fill_the_disk(path)
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


def _fill_the_disk(path):
    with replacing(path) as temporary:
        temporary.write_bytes(b"after")
        Path("/dev/full").write_bytes(b"after")  # the kernel's own file that has no room


def test_many_files_are_written_at_once_and_replace_what_was_there(tmp_path):
    contents = {tmp_path / f"{number % 7}" / f"{number}": b"%d" % number for number in range(100)}
    write_all_atomically(dict.fromkeys(contents, b"before"))
    write_all_atomically(contents)
    assert {path: path.read_bytes() for path in tmp_path.glob("*/*")} == contents


def test_a_disk_that_fills_among_many_files_is_named_and_leaves_no_half_of_one(tmp_path, monkeypatch):
    flush, flushed = os.fsync, []

    def full_after_two(descriptor):
        flushed.append(descriptor)
        if len(flushed) > 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        flush(descriptor)

    monkeypatch.setattr(os, "fsync", full_after_two)
    with pytest.raises(StoreError, match=r"cannot be written: No space left on device\. Make room"):
        write_all_atomically({tmp_path / f"{number}": b"whole" for number in range(8)})
    left = list(tmp_path.iterdir())
    assert len(left) <= 2
    assert all(path.read_bytes() == b"whole" for path in left)
