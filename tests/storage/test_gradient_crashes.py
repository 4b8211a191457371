"""A kill at any moment, and two writers at once: each example ends in the table exactly once."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import lancedb
import pytest

from gradtrail.storage.gradients.store import GradientStore

INDEX_ID = "1f" * 32
ROWS = 500
WRITER = f"""
import runpy, sys, time
from gradtrail.storage.gradients.store import GradientStore

uri, fixtures, task = sys.argv[1:]
rows_of = runpy.run_path(fixtures)["gradient_rows_of"]
everything = rows_of(range({ROWS}))
print("ready", flush=True)
sys.stdin.readline()
table = GradientStore(uri).open_index(
    {INDEX_ID!r}, dimension=8, group_count=3, attribute_names=["source", "licence"], config={{"seed": 1}}
)
present = table.present()
missing = [number for number in range({ROWS}) if f"example-{{number}}" not in present]
written, began = 0, time.time()
for start in range(0, len(missing), 20):
    written += table.append(**rows_of(missing[start : start + 20]))
    print("appended", flush=True)
ended = time.time()
if task == "seal":
    print("sealing", flush=True)
    table.seal(dict(zip(everything["example_ids"], everything["content_sha256"])))
print("wrote", written, began, ended, flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def start_writer(gradient_store):
    """Starts a process that appends all examples in batches of 20; it waits for a line before, and after."""
    started = []

    def start(task):
        fixtures = Path(__file__).with_name("conftest.py")
        command = [sys.executable, "-c", WRITER, gradient_store.uri, str(fixtures), task]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def wait_for(process, line, times=1):
    while times:
        said = process.stdout.readline()
        assert said, "the writer ended before its moment came"
        times -= said.startswith(line)
    return said


def go(process):
    process.stdin.write("go\n")
    process.stdin.flush()


def kill_after(process, line, times, delay):
    """SIGKILL the process `delay` seconds after it has said `line` so many times."""
    wait_for(process, "ready")
    go(process)
    if times:
        wait_for(process, line, times)
    time.sleep(delay)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


def stored_ids(store):
    table = store.existing(INDEX_ID)
    if table is None:
        return []
    version = lancedb.connect(store.uri).open_table(f"index_{INDEX_ID}").version
    return [name for batch in table.stream(version=version, columns=[]) for name in batch.example_ids]


def undisturbed_digest(store, everything):
    table = GradientStore(f"{store.uri}-undisturbed").open_index(
        INDEX_ID, dimension=8, group_count=3, attribute_names=["source", "licence"], config={"seed": 1}
    )
    table.append(**everything)
    table.seal(table.present())
    return table.seal_record().rows_sha256


@pytest.mark.slow  # many processes; flows/test_kills.py kills an index in every run of the tests
def test_an_index_killed_again_and_again_resumes_with_no_gap_and_no_duplicate(
    start_writer, gradient_store, gradient_rows
):
    while_creating, between_appends, inside_an_append = ("", 0, 0.005), ("appended", 1, 0.0), ("appended", 3, 0.007)
    before = 0
    for line, times, delay in (while_creating, between_appends, inside_an_append, ("appended", 2, 0.011)):
        kill_after(start_writer("seal"), line, times, delay)
        ids = stored_ids(gradient_store)
        assert len(ids) == len(set(ids)) >= before + 20 * times
        before = len(ids)
    kill_after(start_writer("seal"), "sealing", 1, 0.012)
    last = start_writer("seal")
    wait_for(last, "ready")
    go(last)
    wait_for(last, "wrote")
    table = gradient_store.existing(INDEX_ID)
    everything = gradient_rows(range(ROWS))
    assert table.present() == dict(zip(everything["example_ids"], everything["content_sha256"], strict=True))
    assert table.verify() == []
    assert table.seal_record().rows_sha256 == undisturbed_digest(gradient_store, everything)


def test_two_processes_that_append_the_same_examples_write_each_once(start_writer, gradient_store, gradient_rows):
    writers = [start_writer("append"), start_writer("append")]
    for step in (lambda writer: wait_for(writer, "ready"), go):
        for writer in writers:
            step(writer)
    reports = [wait_for(writer, "wrote").split() for writer in writers]
    assert sum(int(report[1]) for report in reports) == ROWS
    began, ended = ([float(report[place]) for report in reports] for place in (2, 3))
    assert max(began) < min(ended), "the two did not meet; the test shows nothing"
    table = gradient_store.existing(INDEX_ID)
    everything = gradient_rows(range(ROWS))
    table.seal(dict(zip(everything["example_ids"], everything["content_sha256"], strict=True)))
    assert table.verify() == []
