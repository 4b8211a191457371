"""Handing OpenLineage events on: into a file of JSON Lines, or to a consumer over HTTP."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from openlineage.client.event_v2 import RunEvent
from openlineage.client.transport.file import FileConfig, FileTransport
from openlineage.client.transport.http import HttpConfig, HttpTransport
from requests import RequestException

from gradtrail.errors import GradtrailError, UsageError

SECONDS_TO_WAIT = 10.0


def append_to_file(events: Iterable[RunEvent], path: Path) -> int:
    """Add events to a file, one JSON object a line; returns how many.

    Raises:
        GradtrailError: the file cannot be written or its disk is full; then none of the events stays in it.
    """
    transport = FileTransport(FileConfig(str(path), append=True))
    count = 0
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        before = _end_of_lines(path)
        try:
            for event in events:
                transport.emit(event)
                count += 1
        except RuntimeError:
            # The client leaves what it wrote of a line, and would write the next event behind it on the same line.
            if path.is_file():
                os.truncate(path, before)
            raise
    except (OSError, RuntimeError) as fault:
        raise GradtrailError(
            f"The file {path} did not take OpenLineage event {count + 1}: {fault}.",
            "Make room or give another file, then export again.",
        ) from fault
    return count


def _end_of_lines(path: Path) -> int:
    """The size of a file in bytes, once a line that a kill left unfinished in it has an end."""
    if not path.is_file():
        return 0
    with path.open("a+b") as stream:
        if size := stream.tell():
            stream.seek(size - 1)
            if stream.read(1) != b"\n":
                stream.write(b"\n")
        return stream.seek(0, os.SEEK_END)


def send(events: Iterable[RunEvent], url: str, *, api_key: str = "") -> int:
    """Post events one by one to `<url>/api/v1/lineage`; returns how many.

    Sending the same events again is harmless: their run ids follow from the ledger.

    Raises:
        UsageError: the address is not one of HTTP.
        GradtrailError: the consumer cannot be reached or refuses an event; those before it were taken.
    """
    if not url.startswith(("http://", "https://")):
        raise UsageError(f"{url!r} is not the address of an OpenLineage consumer.", "Write it as http://host:port.")
    auth = {"auth": {"type": "api_key", "apiKey": api_key}} if api_key else {}
    transport = HttpTransport(HttpConfig.from_dict({"url": url, "timeout": SECONDS_TO_WAIT, **auth}))
    count = 0
    try:
        for event in events:
            transport.emit(event)
            count += 1
    except RequestException as fault:
        raise GradtrailError(
            f"The OpenLineage consumer at {url} did not take event {count + 1}: {fault}.",
            "Start or mend it, then export again: what it has already is recognised.",
        ) from fault
    finally:
        transport.close()
    return count
