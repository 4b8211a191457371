#!/usr/bin/env bash
# openlineage-python 1.54.0, FileTransport(append=True).
# Guess: an event that could not be written whole leaves the file as it was, or the next event begins a line of its own.
# Seen: after a write that found no room, the next event is appended behind the torn half, on the same line, so that the
#       file of JSON Lines holds one line that is not JSON: the whole event is lost with the torn one.
# Source: openlineage/client/transport/file.py (append mode writes json + newline, without looking at the file's end).
# Output: second event: RuntimeError / 2 lines, 1 of them no JSON
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check "openlineage-python==1.54.0"
cd "$folder"
"$folder/venv/bin/python" - <<'PY'
import json, resource, signal
from datetime import datetime, timezone
from openlineage.client.event_v2 import Job, Run, RunEvent, RunState
from openlineage.client.transport.file import FileConfig, FileTransport
from openlineage.client.uuid import generate_new_uuid

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a full disk, made small: the write returns short, as ENOSPC would
transport = FileTransport(FileConfig(log_file_path="events.jsonl", append=True))

def emit(name):
    now = datetime.now(timezone.utc).isoformat()
    run = Run(runId=str(generate_new_uuid()))
    transport.emit(RunEvent(eventType=RunState.COMPLETE, eventTime=now, run=run, job=Job("space", name), producer="https://example.org"))

emit("first")
size = len(open("events.jsonl", "rb").read())
soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (size + 50, hard))
try:
    emit("second")
except Exception as fault:
    print("second event:", type(fault).__name__)
resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
emit("third")
lines = open("events.jsonl").read().splitlines()
bad = 0
for line in lines:
    try:
        json.loads(line)
    except ValueError:
        bad += 1
print(f"{len(lines)} lines, {bad} of them no JSON")
assert (len(lines), bad) == (2, 1), "the behaviour changed"
assert "third" in lines[1], "the behaviour changed"
PY
