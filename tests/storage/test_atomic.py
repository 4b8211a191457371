"""Files that appear whole or not at all."""

from pathlib import Path

import pytest

from gradtrail.errors import StoreError
from gradtrail.storage.files.atomic import replacing, write_atomically


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
