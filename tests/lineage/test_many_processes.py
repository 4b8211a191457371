"""Two processes that write and five that read at once: nothing is lost, and nobody sees half a transaction."""

from __future__ import annotations

import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from gradtrail.lineage.ledger.writing import Ledger
from gradtrail.lineage.verify.verifying import verify_ledger

pytestmark = pytest.mark.ci  # several processes at once

WRITERS, READERS = 2, 5

# One transaction records four outputs, all or none; every few of them a snapshot is published.
WRITER = """
import sys, time
from datetime import UTC, datetime
from pathlib import Path
from gradtrail.lineage.ledger.writing import Ledger
from gradtrail.nouns import Output
folder, name, seconds = Path(sys.argv[1]), sys.argv[2], float(sys.argv[3])
ledger = Ledger(folder / "ledger.duckdb", folder / "snapshot.duckdb", patience_seconds=300)
end, number = time.monotonic() + seconds, 0
while time.monotonic() < end or number < 3:
    ids = [f"{name}:{number}.{part}" for part in range(4)]
    new = ledger.record_outputs(
        [Output(each, name, each, datetime(2026, 1, 1, tzinfo=UTC), "digits/1", "aa" * 32) for each in ids]
    )
    if new != ids:
        raise SystemExit(f"{new} are new of {ids}")
    if number % 3 == 0:
        ledger.publish_snapshot()
    number += 1
print(number)
"""

READER = """
import sys, time
from contextlib import closing
from pathlib import Path
from gradtrail.lineage.ledger.writing import Ledger
folder, seconds = Path(sys.argv[1]), float(sys.argv[2])
ledger = Ledger(folder / "ledger.duckdb", folder / "snapshot.duckdb", patience_seconds=300)
# Each question in one statement, so that both sides are of one moment.
QUESTION = '''
    SELECT (SELECT count(*) FROM output) AS outputs,
        (SELECT count(*) FROM row_commitment WHERE table_name = 'output') AS promised,
        (SELECT sum((payload::JSON->'rows'->'output'->>'count')::BIGINT)
            FROM event WHERE kind = 'outputs') AS announced,
        (SELECT count(*) FROM (SELECT source FROM output WHERE source <> 'inbox'
            GROUP BY source, split_part(split_part(record_id, ':', 2), '.', 1) HAVING count(*) <> 4)) AS torn'''
end, reads, most = time.monotonic() + seconds, 0, 0
while time.monotonic() < end or reads < 2:
    with closing(ledger.read_snapshot()) as connection:
        first = connection.execute(QUESTION).fetchall()[0]
        again = connection.execute(QUESTION).fetchall()[0]
    if first != again or not first[0] == first[1] == first[2] or first[3] or first[0] < most:
        raise SystemExit(f"read {first}, then {again}, after {most}")
    most, reads = first[0], reads + 1
print(reads)
"""


def _race(story_ledger: Ledger, seconds: float) -> None:
    folder = str(story_ledger.paths.database.parent)
    commands = [[WRITER, folder, f"writer-{place}", str(seconds)] for place in range(WRITERS)]
    commands += [[READER, folder, str(seconds)] for _ in range(READERS)]
    processes = [
        subprocess.Popen([sys.executable, "-c", *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for command in commands
    ]
    said = [process.communicate(timeout=seconds + 300) for process in processes]
    assert [process.returncode for process in processes] == [0] * (WRITERS + READERS), said
    written = sum(int(out) for out, _ in said[:WRITERS])
    assert written >= 3 * WRITERS
    story_ledger.publish_snapshot()
    with closing(story_ledger.read_snapshot()) as connection:
        count = connection.execute("SELECT count(*) FROM output WHERE source <> 'inbox'").fetchall()[0][0]
    assert count == 4 * written
    assert verify_ledger(story_ledger).ok


def test_two_processes_write_and_five_read_for_a_moment(story_ledger: Ledger) -> None:
    _race(story_ledger, 1)


PUBLISHER = """
import sys
from pathlib import Path
from gradtrail.lineage.ledger.writing import Ledger
folder = Path(sys.argv[1])
for _ in range(12):
    Ledger(folder / "ledger.duckdb", folder / "snapshot.duckdb", patience_seconds=100).publish_snapshot()
"""


def test_processes_that_publish_at_once_take_turns(story_ledger: Ledger) -> None:
    command = [sys.executable, "-c", PUBLISHER, str(story_ledger.paths.database.parent)]
    processes = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    said = [process.communicate(timeout=200)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], said
    assert verify_ledger(story_ledger).bytes_sealed


@pytest.mark.slow
def test_two_processes_write_and_five_read_for_a_minute(story_ledger: Ledger) -> None:
    _race(story_ledger, 60)


# A writer that may not let any file grow beyond a limit: the disk is full, as far as it can tell.
STARVED = """
import resource, signal, sys
from datetime import UTC, datetime
from pathlib import Path
from gradtrail.errors import GradtrailError
from gradtrail.lineage.ledger.writing import Ledger
from gradtrail.nouns import Output
folder, what = Path(sys.argv[1]), sys.argv[2]
ledger = Ledger(folder / "ledger.duckdb", folder / "snapshot.duckdb", patience_seconds=5)
import duckdb, pyarrow.compute
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
size = (folder / "ledger.duckdb").stat().st_size
resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2 if what == "publish" else size, resource.RLIM_INFINITY))
try:
    if what == "publish":
        ledger.publish_snapshot()
    else:
        ledger.record_outputs(
            [
                Output(f"big:{n}", "big", f"{n}" * 200, datetime(2026, 1, 1, tzinfo=UTC), "digits/1", f"{n:064x}")
                for n in range(40000)
            ]
        )
except GradtrailError as error:
    print(type(error).__name__, error, flush=True)
else:
    print("went through", flush=True)
"""


@pytest.mark.parametrize("what", ["record", "publish"])
def test_on_a_full_disk_nothing_is_lost_and_the_error_says_so(what: str, story, story_ledger: Ledger) -> None:
    folder = story_ledger.paths.database.parent
    published = story_ledger.paths.snapshot.read_bytes()
    done = subprocess.run(
        [sys.executable, "-c", STARVED, str(folder), what], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert "Error" in done.stdout, done.stdout + done.stderr
    assert "disk" in done.stdout
    assert story_ledger.paths.snapshot.read_bytes() == published
    # With room again the same goes through, and all that was recorded before is there.
    assert verify_ledger(story_ledger).problems == ()
    with story_ledger.read() as connection:
        assert connection.execute("SELECT count(*) FROM output").fetchall() == [(5,)]
    assert story_ledger.record_quarantine("inbox", "after", "there is room again")
    story_ledger.publish_snapshot()
    assert verify_ledger(story_ledger).bytes_sealed


def test_a_question_goes_on_while_its_snapshot_is_replaced(story_ledger: Ledger) -> None:
    slow = """
        SELECT (SELECT count(*) FROM quarantine) AS before, count(*) AS n
        FROM range(30000000) AS a WHERE hash(a.range) % 7 = 3"""
    reading = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys\nfrom contextlib import closing\nfrom pathlib import Path\n"
            "from gradtrail.lineage.connections import open_snapshot\n"
            "with closing(open_snapshot(Path(sys.argv[1]))) as connection:\n"
            "    print('open', flush=True)\n    sys.stdin.readline()\n"
            "    print(connection.execute(sys.argv[2]).fetchall()[0][0], flush=True)\n",
            str(story_ledger.paths.snapshot),
            slow,
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with reading:
        assert reading.stdout is not None
        assert reading.stdout.readline() == "open\n"
        story_ledger.record_quarantine("inbox", "later", "no label")
        story_ledger.publish_snapshot()
        out, _ = reading.communicate("go\n", timeout=120)
    assert out == "1\n"
    with closing(story_ledger.read_snapshot()) as connection:
        assert connection.execute("SELECT count(*) FROM quarantine").fetchall() == [(2,)]


def test_a_snapshot_that_vanishes_while_nobody_reads_is_named(story_ledger: Ledger, tmp_path: Path) -> None:
    from gradtrail.errors import NotFoundError

    story_ledger.paths.snapshot.unlink()
    started = time.perf_counter()
    with pytest.raises(NotFoundError, match="no ledger snapshot"):
        story_ledger.read_snapshot()
    assert time.perf_counter() - started < 5
