from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import duckdb
import pytest

from gradtrail.errors import LedgerError, NotFoundError
from gradtrail.lineage.connections import shared_file
from gradtrail.lineage.ledger.seal import read_seal, seal_path
from gradtrail.lineage.ledger.writing import Ledger
from gradtrail.lineage.read import queries
from gradtrail.lineage.verify.verifying import verify_ledger

# A process of its own: writes quarantine records under its name, one transaction each.
WRITER = """
import sys
from pathlib import Path
from gradtrail.lineage.ledger.writing import Ledger
folder, name, count = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
ledger = Ledger(folder / "ledger.duckdb", folder / "snapshot.duckdb")
for number in range(count):
    assert ledger.record_quarantine(name, str(number), "a test")
    print(number, flush=True)
"""

# A process that begins a write and is killed before it commits.
HOLDER = """
import sys, time
import duckdb
connection = duckdb.connect(sys.argv[1])
connection.begin()
connection.execute("INSERT INTO quarantine VALUES ('x', 'x', 'x', 'x', 99, 'x'::BLOB)")
print("holding", flush=True)
time.sleep(60)
"""


def _start(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", *arguments], stdout=subprocess.PIPE, text=True)


def test_there_is_no_snapshot_before_the_first_is_published(empty_ledger: Ledger) -> None:
    with pytest.raises(NotFoundError, match=r"no ledger snapshot at .*gradtrail ingest"):
        empty_ledger.read_snapshot()


def test_the_snapshot_is_the_ledger_and_its_seal_says_so(story, story_ledger: Ledger) -> None:
    assert story_ledger.publish_snapshot() == story_ledger.paths.snapshot
    assert story_ledger.paths.snapshot.read_bytes() == story_ledger.paths.database.read_bytes()
    with closing(story_ledger.read_snapshot()) as connection:
        assert queries.audit(connection, story.audit.audit_id) == story.audit
        assert queries.upstream(connection, "inbox:0")[0].node_id == "inbox:0"
        with pytest.raises(duckdb.Error, match="read-only"):
            connection.execute("INSERT INTO refusal VALUES ('x')")
    seal = read_seal(story_ledger.paths.snapshot)
    assert seal is not None
    assert seal.head_sequence == 10
    assert verify_ledger(story_ledger).bytes_sealed


def test_readers_of_a_snapshot_neither_block_nor_see_the_writer(story, story_ledger: Ledger) -> None:
    with closing(story_ledger.read_snapshot()) as before:
        assert story_ledger.record_quarantine("inbox", "later", "no label")
        assert len(queries.quarantined(before)) == 1
        story_ledger.publish_snapshot()
        assert len(queries.quarantined(before)) == 1
        with closing(story_ledger.read_snapshot()) as after:
            assert [each.record_id for each in queries.quarantined(after)] == ["broken", "later"]


def test_a_snapshot_is_read_while_another_process_holds_the_ledger(story_ledger: Ledger) -> None:
    with _start(HOLDER, str(story_ledger.paths.database)) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "holding\n"
            with closing(story_ledger.read_snapshot()) as connection:
                assert len(queries.quarantined(connection)) == 1
            impatient = Ledger(story_ledger.paths.database, story_ledger.paths.snapshot, patience_seconds=0.3)
            with pytest.raises(LedgerError, match=r"locked by another process for 0\.3 s"):
                impatient.record_quarantine("inbox", "blocked", "no label")
            with pytest.raises(LedgerError, match=r"locked by another process"), impatient.read():
                pass
        finally:
            holder.send_signal(signal.SIGKILL)
    assert story_ledger.record_quarantine("inbox", "free again", "no label")
    assert verify_ledger(story_ledger).ok


def test_two_processes_writing_at_once_lose_nothing(story_ledger: Ledger) -> None:
    folder = str(story_ledger.paths.database.parent)
    with _start(WRITER, folder, "first", "12") as first, _start(WRITER, folder, "second", "12") as second:
        for number in range(6):
            assert story_ledger.record_quarantine("third", str(number), "a test")
            story_ledger.publish_snapshot()
        first.communicate(timeout=60)
        second.communicate(timeout=60)
    assert (first.returncode, second.returncode) == (0, 0)
    with story_ledger.read() as connection:
        written = [(each.source, each.record_id) for each in queries.quarantined(connection)]
    expected = {("inbox", "broken"), *(("third", str(n)) for n in range(6))}
    expected |= {(name, str(n)) for name in ("first", "second") for n in range(12)}
    assert set(written) == expected
    assert len(written) == len(expected)
    assert verify_ledger(story_ledger).ok


def test_a_writer_killed_at_any_moment_leaves_a_sound_ledger(story_ledger: Ledger) -> None:
    with _start(WRITER, str(story_ledger.paths.database.parent), "killed", "1000") as writer:
        assert writer.stdout is not None
        for _ in range(5):
            writer.stdout.readline()
        writer.send_signal(signal.SIGKILL)
        done = 5 + sum(1 for _ in writer.stdout)
    report = verify_ledger(story_ledger)
    assert report.ok
    assert report.head_sequence in (10 + done, 11 + done)
    assert story_ledger.record_quarantine("inbox", "after the kill", "no label")
    story_ledger.publish_snapshot()
    assert verify_ledger(story_ledger).bytes_sealed


def test_threads_of_one_process_take_turns(story_ledger: Ledger) -> None:
    failures: list[Exception] = []

    def write(name: str) -> None:
        try:
            for number in range(4):
                story_ledger.record_quarantine(name, str(number), "a test")
                with story_ledger.read() as connection:
                    queries.quarantined(connection)
        except LedgerError as error:
            failures.append(error)

    threads = [threading.Thread(target=write, args=(f"thread {number}",)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    with story_ledger.read() as connection:
        assert len(queries.quarantined(connection)) == 17
    assert verify_ledger(story_ledger).ok


def test_a_second_handle_on_the_same_file_waits_and_then_says_why(story_ledger: Ledger, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(story_ledger.paths.database.parent)
    twin = Ledger(tmp_path / "link" / "ledger.duckdb", story_ledger.paths.snapshot, patience_seconds=0.1)
    with story_ledger.read():
        with twin.read():
            pass
        with pytest.raises(LedgerError, match=r"in use by another part of this process.*Close the connection"):
            twin.record_quarantine("inbox", "x", "y")


def test_copying_the_ledger_keeps_writers_of_other_processes_out(story_ledger: Ledger) -> None:
    probe = "import duckdb, sys\ntry: duckdb.connect(sys.argv[1])\nexcept duckdb.Error: print('refused')"
    database = story_ledger.paths.database
    with story_ledger.exclusive(), shared_file(database, patience_seconds=5):
        outcome = subprocess.run(
            [sys.executable, "-c", probe, str(database)], capture_output=True, text=True, check=True
        )
    assert outcome.stdout == "refused\n"


@pytest.mark.parametrize("moment", ["before the snapshot", "before the seal"])
def test_a_publication_killed_half_way_is_sound_and_heals(moment: str, story_ledger: Ledger, tmp_path: Path) -> None:
    snapshot, seal = story_ledger.paths.snapshot, seal_path(story_ledger.paths.snapshot)
    old_snapshot, old_seal = snapshot.read_bytes(), seal.read_bytes()
    story_ledger.record_quarantine("inbox", "later", "no label")
    story_ledger.publish_snapshot()
    # As the files stand when the process dies between two of the three renames.
    following = snapshot.with_name(snapshot.name + ".seal.json.next")
    shutil.move(seal, following)
    seal.write_bytes(old_seal)
    if moment == "before the snapshot":
        shutil.move(snapshot, snapshot.with_name(snapshot.name + ".part"))
        snapshot.write_bytes(old_snapshot)
    assert verify_ledger(story_ledger).ok
    with closing(story_ledger.read_snapshot()) as connection:
        assert len(queries.quarantined(connection)) == (1 if moment == "before the snapshot" else 2)
    story_ledger.publish_snapshot()
    assert verify_ledger(story_ledger).bytes_sealed
    assert not following.exists()


# A process that publishes and dies before the last rename, or before the one of the snapshot.
PUBLISH_AND_DIE = """
import os, signal, sys
from pathlib import Path
from gradtrail.lineage.ledger.writing import Ledger
folder, suffix = Path(sys.argv[1]), sys.argv[2]
replace = Path.replace
def replace_or_die(path, target):
    if str(target).endswith(suffix):
        os.kill(os.getpid(), signal.SIGKILL)
    return replace(path, target)
Path.replace = replace_or_die
Ledger(folder / "ledger.duckdb", folder / "snapshot.duckdb").publish_snapshot()
"""


def test_publications_killed_one_after_the_other_leave_a_seal(story, empty_ledger: Ledger) -> None:
    story.record(empty_ledger)
    snapshot = empty_ledger.paths.snapshot
    for suffix, published in ((".duckdb", False), (".seal.json", True), ("snapshot.duckdb", True)):
        with _start(PUBLISH_AND_DIE, str(snapshot.parent), suffix) as publisher:
            publisher.communicate(timeout=60)
        assert publisher.returncode == -signal.SIGKILL
        assert snapshot.is_file() == published == (read_seal(snapshot) is not None)
        assert verify_ledger(empty_ledger).problems == ()
        empty_ledger.record_quarantine("inbox", f"after {suffix}", "no label")
    empty_ledger.publish_snapshot()
    assert verify_ledger(empty_ledger).bytes_sealed


def test_a_copy_is_of_the_file_that_took_the_place_of_the_one_waited_for(tmp_path: Path) -> None:
    holder = """
import fcntl, os, sys
with open(sys.argv[1], "r+b") as old:
    fcntl.lockf(old, fcntl.LOCK_EX)
    print("holding", flush=True)
    sys.stdin.readline()
    os.replace(sys.argv[1] + ".fresh", sys.argv[1])
"""
    opened = threading.Event()

    class Noticed(type(tmp_path)):  # type: ignore[misc]
        def open(self, *arguments: Any, **options: Any) -> Any:
            stream = super().open(*arguments, **options)
            opened.set()
            return stream

    database = Noticed(tmp_path / "ledger.duckdb")
    database.write_bytes(b"old")
    database.with_name("ledger.duckdb.fresh").write_bytes(b"fresh")
    opened.clear()
    seen: list[bytes] = []

    def copy() -> None:
        with shared_file(database, patience_seconds=30) as source:
            seen.append(source.read())

    command = [sys.executable, "-c", holder, str(database)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "holding\n"
        copying = threading.Thread(target=copy)
        copying.start()
        assert opened.wait(timeout=30)
        process.communicate("replace\n", timeout=30)
        copying.join()
    assert seen == [b"fresh"]


@pytest.mark.parametrize("inside", [False, True], ids=["another process", "this process"])
def test_a_snapshot_that_a_viewer_has_open_is_locked_and_not_damaged(inside: bool, story, story_ledger: Ledger) -> None:
    snapshot = story_ledger.publish_snapshot()
    viewer = "import duckdb, sys, time; c = duckdb.connect(sys.argv[1]); print('open', flush=True); time.sleep(60)"
    if inside:
        held = duckdb.connect(str(snapshot))
    else:
        process = _start(viewer, str(snapshot))
        assert process.stdout is not None
        process.stdout.readline()
    with pytest.raises(LedgerError) as caught:
        story_ledger.read_snapshot()
    if inside:
        held.close()
    else:
        process.kill()
        process.wait()
        assert f"(process {process.pid})" in caught.value.what
    assert "is locked" in caught.value.what
    assert "read-only" in caught.value.remedy
    assert "restore" not in str(caught.value)
    with closing(story_ledger.read_snapshot()) as connection:
        assert queries.audit(connection, story.audit.audit_id) == story.audit


def test_a_snapshot_that_is_no_database_is_named(story_ledger: Ledger) -> None:
    story_ledger.paths.snapshot.write_bytes(b"not a database" * 1000)
    with pytest.raises(LedgerError, match=r"snapshot\.duckdb cannot be read"):
        story_ledger.read_snapshot()


def test_paths_may_hold_quotes(story, tmp_path: Path) -> None:
    folder = tmp_path / 'it\'s a "folder"'
    ledger = Ledger(folder / "ledger.duckdb", folder / "snap'shot.duckdb")
    ledger.record_weighting(story.weighting)
    ledger.publish_snapshot()
    with closing(ledger.read_snapshot()) as connection:
        assert queries.weighting(connection, story.weighting.weighting_id) == story.weighting


def test_a_write_takes_milliseconds(story_ledger: Ledger) -> None:
    started = time.perf_counter()
    for number in range(5):
        story_ledger.record_quarantine("speed", str(number), "a test")
    each = (time.perf_counter() - started) / 5
    print(f"one small write: {1000 * each:.0f} ms")
    assert each < 2
