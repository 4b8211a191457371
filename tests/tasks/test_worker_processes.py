import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gradtrail.errors import UsageError
from gradtrail.tasks.index.worker_processes import WorkerLostError, run_in_processes

# Built-in functions stand in for work: a fresh process can import nothing of this module.
SLEEP = "__import__('time').sleep(60)"


def test_calls_run_at_the_same_time_in_processes_of_their_own_and_answer_in_order():
    looks = []
    waiting = "__import__('time').sleep({}) or (__import__('os').getpid(), __import__('time').monotonic())"
    calls = [(waiting.format(1.0),), (waiting.format(0.5),)]
    began = time.monotonic()
    (first, first_end), (second, second_end) = run_in_processes(
        eval, calls, meanwhile=lambda: looks.append(time.monotonic()), every=0.1
    )
    assert len({first, second, os.getpid()}) == 3
    assert first_end - second_end < 0.5 + 5
    assert len(looks) > 3
    assert looks[0] - began < 1
    assert multiprocessing.active_children() == []


def test_a_process_may_start_others_as_adapters_that_load_data_do():
    started = "(lambda child: (child.start(), child.join(), child.exitcode)[2])({})"
    child = started.format("__import__('multiprocessing').get_context('spawn').Process(target=bool)")
    assert run_in_processes(eval, [(child,)], meanwhile=bool, every=0.1) == [0]


def test_what_a_process_raises_is_raised_here_and_ends_the_others():
    failing = "(_ for _ in ()).throw(__import__('gradtrail.errors').errors.UsageError('No such thing.', 'Name one.'))"
    began = time.monotonic()
    with pytest.raises(UsageError, match=r"No such thing\. Name one\."):
        run_in_processes(eval, [(SLEEP,), (failing,)], meanwhile=bool, every=0.1)
    assert time.monotonic() - began < 30
    assert multiprocessing.active_children() == []


def test_a_process_that_is_killed_is_named_with_the_remedy():
    with pytest.raises(WorkerLostError, match=r"One of 2 worker processes was killed.*it resumes"):
        run_in_processes(
            eval, [(SLEEP,), ("__import__('os').kill(__import__('os').getpid(), 9)",)], meanwhile=bool, every=0.1
        )
    assert multiprocessing.active_children() == []


def test_an_interruption_here_ends_them():
    def interrupted():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_in_processes(eval, [(SLEEP,)], meanwhile=interrupted, every=0.1)
    assert multiprocessing.active_children() == []


def test_processes_end_with_one_that_is_killed(tmp_path):
    note = tmp_path / "worker"
    work = f"__import__('pathlib').Path({str(note)!r}).write_text(str(__import__('os').getpid())) and {SLEEP}"
    script = tmp_path / "starting.py"
    script.write_text(
        "from gradtrail.tasks.index.worker_processes import run_in_processes\n"
        "if __name__ == '__main__':\n"
        f"    run_in_processes(eval, [({work!r},)], meanwhile=bool, every=0.1)\n"
    )
    starting = subprocess.Popen([sys.executable, script])
    worker = int(_eventually(lambda: note.exists() and note.read_text()))
    starting.send_signal(signal.SIGKILL)
    starting.wait()
    assert _eventually(lambda: not _lives(worker))


def _eventually(found):
    for _ in range(300):
        if value := found():
            return value
        time.sleep(0.1)
    raise AssertionError("not within 30 seconds")


def _lives(process):
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    # In a container without an init process that reaps, an orphan stays as a zombie.
    return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
