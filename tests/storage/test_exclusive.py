"""A lock is held by one at a time, and a kill lets it go."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from gradtrail.errors import GradtrailError
from gradtrail.storage.files.exclusive import holding

HOLD = """
import sys, time
from pathlib import Path
from gradtrail.storage.files.exclusive import holding
with holding(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""
HOLD_AND_FORK = """
import os, sys, time
from pathlib import Path
from gradtrail.storage.files.exclusive import holding
with holding(Path(sys.argv[1])):
    if os.fork() == 0:
        print(os.getpid(), flush=True)  # by now the child has let go of what it inherited
    time.sleep(600)
"""
ADD_ONE = """
import sys
from pathlib import Path
from gradtrail.storage.files.exclusive import holding
count = Path(sys.argv[1])
for _ in range(20):
    with holding(count.with_suffix(".lock")):
        count.write_text(str(int(count.read_text()) + 1))
"""


@pytest.fixture
def holder(tmp_path):
    """The lock's file and another process that holds it."""
    lock = tmp_path / "locks" / "audit"
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(lock)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield lock, process
    process.kill()
    process.communicate()


def test_a_second_waits_until_the_first_is_killed(holder):
    lock, first = holder
    entered = threading.Event()

    def second() -> None:
        with holding(lock):
            entered.set()

    waiting = threading.Thread(target=second)
    waiting.start()
    assert not entered.wait(0.3)
    first.kill()
    assert entered.wait(30)
    waiting.join()


def test_who_does_not_want_to_wait_is_told_at_once(holder):
    lock, first = holder
    with pytest.raises(GradtrailError, match="Another one is at work"), holding(lock, busy=_busy()):
        raise AssertionError
    first.kill()
    first.wait()
    with holding(lock, busy=_busy()):
        pass


def test_threads_and_processes_exclude_each_other(tmp_path):
    count = tmp_path / "count"
    count.write_text("0")
    others = [subprocess.Popen([sys.executable, "-c", ADD_ONE, str(count)]) for _ in range(2)]

    def add() -> None:
        for _ in range(20):
            with holding(count.with_suffix(".lock")):
                before = int(count.read_text())
                time.sleep(0.001)
                count.write_text(str(before + 1))

    threads = [threading.Thread(target=add) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [other.wait(60) for other in others] == [0, 0]
    assert count.read_text() == "80"


def test_an_error_inside_lets_the_lock_go(tmp_path):
    with pytest.raises(ValueError, match="inside"), holding(tmp_path / "lock"):
        raise ValueError("inside")
    with holding(tmp_path / "lock", busy=_busy()):
        pass


def test_a_thread_that_would_wait_for_itself_is_told(tmp_path):
    with holding(tmp_path / "lock"), pytest.raises(RuntimeError, match="Deadlock"), holding(tmp_path / "lock"):
        raise AssertionError


def test_a_process_forked_meanwhile_does_not_keep_the_lock_of_a_killed_one(tmp_path):
    command = [sys.executable, "-c", HOLD_AND_FORK, str(tmp_path / "lock")]
    holder = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    child = int(holder.stdout.readline())
    try:
        holder.kill()
        holder.wait()
        with holding(tmp_path / "lock", busy=_busy()):
            pass
    finally:
        os.kill(child, signal.SIGKILL)
        holder.stdout.close()


def _busy() -> GradtrailError:
    return GradtrailError("Another one is at work.", "Wait for it.")
