"""Handing OpenLineage events on: into a file of JSON Lines, or to a consumer over HTTP."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from openlineage.client.event_v2 import RunEvent
from openlineage.client.serde import Serde
from openlineage.client.transport.http import HttpConfig, HttpTransport
from requests import RequestException

from gradtrail.errors import GradtrailError, UsageError

SECONDS_TO_WAIT = 10.0


def append_to_file(events: Iterable[RunEvent], path: Path) -> int:
    """Add events to a file, one JSON object a line; returns how many."""
    lines = [Serde.to_json(event) for event in events]
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as stream:
        stream.write("".join(f"{line}\n" for line in lines))
    return len(lines)


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
