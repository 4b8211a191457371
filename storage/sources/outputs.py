"""Outputs of production models: from records in files to nouns and payloads, each once, bad ones quarantined."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from gradtrail.digests import sha256_bytes, sha256_file, short
from gradtrail.errors import DataError
from gradtrail.nouns import Output
from gradtrail.storage.files.atomic import replacing
from gradtrail.storage.sources.config import DEFAULT_SOURCE
from gradtrail.storage.sources.inbox import InboxFile, read_inbox, read_records
from gradtrail.storage.sources.payload_json import payload_record, record_payload, utc_time
from gradtrail.storage.sources.plain_values import plain_value

__all__ = [
    "InboxFile",
    "ParsedOutput",
    "Refused",
    "add_file",
    "parse_record",
    "payload_record",
    "read_inbox",
    "read_records",
    "record_payload",
    "write_outputs",
]

_NEEDED = {
    "model": "the registered model's name",
    "version": "its version, a whole number",
    "time": "when the output was made, such as 2026-01-31T12:00:00Z",
    "prediction": "what the model emitted",
}
_LONGEST_NAME = 512
_LARGEST_VERSION = 10**9
_DIGITS = re.compile(r"[1-9][0-9]{0,8}")


@dataclass(frozen=True)
class ParsedOutput:
    """An output and its record, with `time`, `version` and `record_id` in their one form; `payload` is its bytes."""

    output: Output
    record: dict[str, Any]
    payload: bytes


@dataclass(frozen=True)
class Refused:
    """Something that did not get in. `source` is its file or source, `record_id` its own id or "row N" ("" for all)."""

    source: str
    record_id: str
    cause: str


def parse_record(record: Mapping[str, Any], *, place: str, default_source: str = DEFAULT_SOURCE) -> ParsedOutput:
    """Understand one record as an output.

    It needs `model`, `version`, `time` (with its zone) and `prediction`; `source`, `record_id` and `label` are
    optional, and whatever else it has is kept for the adapter. The output's id is `source:record_id`, or without a
    record id `source:` and the sha256 of the record, time included.

    Args:
        place: what messages call the record, such as "day.parquet, row 4".
        default_source: source of an output that names none.

    Raises:
        DataError: a field is absent, of another kind, not finite or too large; names place, field and remedy.
    """
    record = {field: plain_value(value) for field, value in record.items()}
    for field, meaning in _NEEDED.items():
        if record.get(field) is None:
            raise DataError(f"{place} has no field {field!r}.", f"Add it: {meaning}.")
    model = _named_text(record["model"], f"{place}: the field 'model'")
    version = _whole_number(record["version"], f"{place}: the field 'version'")
    produced_at = utc_time(record["time"], f"{place}: the field 'time'")
    known = dict(record) | {"model": model, "version": version, "time": produced_at.isoformat()}
    source = default_source
    if record.get("source") is not None:
        source = known["source"] = _named_text(record["source"], f"{place}: the field 'source'")
    if ":" in source:
        raise DataError(f"{place}: the field 'source' is {source!r}.", "Take the colon out: it ends the source in ids.")
    if record.get("record_id") is not None:
        known["record_id"] = _record_id(record["record_id"], f"{place}: the field 'record_id'")
    payload = record_payload(known, name=place)
    sha256 = sha256_bytes(payload)
    record_id = known.get("record_id") or sha256
    output = Output(
        output_id=f"{source}:{record_id}",
        source=source,
        record_id=record_id,
        produced_at=produced_at,
        model_version_id=f"{model}/{version}",
        payload_sha256=sha256,
    )
    return ParsedOutput(output, payload_record(payload), payload)


def add_file(source_file: Path, inbox: Path) -> Path:
    """Check every record of a file and copy it into the inbox, under a name that begins with its digest.

    Adding the same bytes again changes nothing and returns the copy that is there.

    Raises:
        DataError: the file or a record of it is bad; the message names the first. Nothing is copied then.
    """
    if not source_file.is_file():
        raise DataError(f"There is no file {source_file}.", "Name a Parquet or JSON Lines file of outputs.")
    _require_outputs(InboxFile(source_file, source_file.name))
    digest = short(sha256_file(source_file))
    for present in inbox.glob(f"{digest}-*"):
        return present
    destination = inbox / f"{digest}-{source_file.name}"
    with replacing(destination) as temporary:
        shutil.copyfile(source_file, temporary)
    return destination


def write_outputs(path: Path, records: Sequence[Mapping[str, Any]]) -> Path:
    """Write records as one Parquet file, whole or not at all.

    Raises:
        DataError: a field whose values are not all of one kind.
    """
    fields = list(dict.fromkeys(field for record in records for field in record))
    columns = {}
    for field in fields:
        values = [record.get(field) for record in records]
        try:
            columns[field] = pa.array([_listed(value) for value in values])
        except (pa.ArrowException, TypeError, ValueError, OverflowError) as fault:
            raise DataError(
                f"{path.name}: the values of {field!r} are not all of one kind: {fault}.",
                "Give the field the same type in every record, or write JSON Lines.",
            ) from fault
    with replacing(path) as temporary:
        pq.write_table(pa.table(columns), temporary, write_page_checksum=True)
    return path


def _listed(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray) else value


def _require_outputs(file: InboxFile) -> None:
    payload_by_output: dict[str, str] = {}
    for row in file.rows():
        if row.fault is not None:
            raise row.fault
        place = f"{file.name}, row {row.number}"
        output = parse_record(row.record or {}, place=place).output
        if payload_by_output.setdefault(output.output_id, output.payload_sha256) != output.payload_sha256:
            raise DataError(
                f"{place}: output {output.output_id} was delivered before with other content.",
                "Give each output a record_id of its own.",
            )


def _named_text(value: Any, name: str) -> str:
    if not isinstance(value, str) or not value.isprintable() or not 0 < len(value) <= _LONGEST_NAME:
        raise DataError(f"{name} is {value!r:.80}.", f"Make it text of 1 to {_LONGEST_NAME} printable characters.")
    return value


def _record_id(value: Any, name: str) -> str:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else _named_text(value, name)


def _whole_number(value: Any, name: str) -> int:
    is_number = isinstance(value, int | float | np.integer) and not isinstance(value, bool)
    is_whole = is_number and 1 <= value <= _LARGEST_VERSION and value == int(value)
    if is_whole or (isinstance(value, str) and _DIGITS.fullmatch(value)):
        return int(value)
    raise DataError(f"{name} is {value!r:.80}.", "Make it the model version's whole number.")
