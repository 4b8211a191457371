"""A lock is held by one at a time, and a kill lets it go."""

import subprocess
import sys
import threading

from gradtrail.storage.files.exclusive import holding

HOLD = """
import sys, time
from pathlib import Path
from gradtrail.storage.files.exclusive import holding
with holding(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_second_waits_until_the_first_is_killed(tmp_path):
    lock = tmp_path / "locks" / "audit"
    first = subprocess.Popen([sys.executable, "-c", HOLD, str(lock)], stdout=subprocess.PIPE, text=True)
    assert first.stdout is not None
    assert first.stdout.readline() == "held\n"
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
    first.communicate()
