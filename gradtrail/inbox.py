"""`gradtrail.record_output`: one call beside the model's own, where it serves."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from gradtrail.storage.sources.call_log import CallLog
from gradtrail.storage.sources.config import DEFAULT_SOURCE
from gradtrail.storage.sources.outputs import parse_record


def record_output(
    *,
    model: str,
    version: int | str,
    prediction: Any,
    time: datetime | str | None = None,
    home: Path | str | None = None,
    **fields: Any,
) -> str:
    """Put one output into the inbox; the next audit takes it.

    It is a line appended to a file that belongs to this process, so it may be called from many threads and processes.
    The line is handed to the operating system before the call returns: a kill does not lose it, a power cut may.

    Args:
        model: the registered model's name.
        version: its version.
        prediction: what the model emitted.
        time: when, with its zone; default: now.
        home: the home folder of the audits; default: that of gradtrail.toml and GRADTRAIL_HOME.
        **fields: what else the adapter reads, by default `inputs`; `record_id`, `label`, `confidence`.

    Returns:
        The output's id, for `gradtrail explain`.

    Raises:
        DataError: a field of the wrong kind, not finite, or a record beyond 16 MB; nothing is written then.
        StoreError: the inbox cannot be written.
    """
    given = {"model": model, "version": version, "prediction": prediction, "time": time or datetime.now(UTC)}
    [output_id] = record_outputs([given | fields], home=home)
    return output_id


def record_outputs(records: Iterable[Mapping[str, Any]], *, home: Path | str | None = None) -> list[str]:
    """Put outputs into the inbox, each a record with `model`, `version`, `time` and `prediction`; returns their ids.

    Raises:
        DataError: a record that is none; the message names its place, and nothing is written.
        StoreError: the inbox cannot be written.
    """
    parsed = [
        parse_record({"source": DEFAULT_SOURCE} | dict(record), place=f"Output {place} of this call")
        for place, record in enumerate(records, start=1)
    ]
    log = _log(_inbox(home))
    for each in parsed:
        log.append(each.payload)
    return [each.output.output_id for each in parsed]


@cache
def _log(folder: Path) -> CallLog:
    return CallLog(folder)


def _inbox(home: Path | str | None) -> Path:
    if home is None:
        from gradtrail.settings import load_settings

        return load_settings().workspace().inbox
    return Path(home).resolve() / "inbox"
