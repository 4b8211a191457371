"""Outputs of production models: from records in files to nouns and payloads, each once, bad ones quarantined."""

from __future__ import annotations

import re
import shutil
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from gradtrail.digests import sha256_bytes, sha256_file, short
from gradtrail.errors import DataError
from gradtrail.nouns import Output
from gradtrail.storage.atomic import replacing
from gradtrail.storage.inbox import InboxFile, Row, read_inbox, read_records
from gradtrail.storage.payloads import PayloadStore
from gradtrail.storage.records import payload_record, record_payload, utc_time

__all__ = [
    "Collected",
    "InboxFile",
    "ParsedOutput",
    "Refused",
    "add_file",
    "collect",
    "parse_record",
    "payload_record",
    "read_inbox",
    "read_records",
    "record_payload",
    "write_outputs",
]

DEFAULT_SOURCE = "inbox"
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
    """Something that did not get in. `source` is its file, `record_id` its own id or "row N" ("" for a whole file)."""

    source: str
    record_id: str
    cause: str


@dataclass(frozen=True)
class Collected:
    """What the inbox holds: outputs whose payloads are stored, and what was refused."""

    outputs: list[Output]
    refused: list[Refused]


def parse_record(
    record: Mapping[str, Any], *, file: str, row: int, default_source: str = DEFAULT_SOURCE
) -> ParsedOutput:
    """Understand one record as an output.

    It needs `model`, `version`, `time` (with its zone) and `prediction`; `source`, `record_id` and `label` are
    optional, and whatever else it has is kept for the adapter. The output's id is `source:record_id`, or without a
    record id `source:` and the sha256 of the record, time included.

    Raises:
        DataError: a field is absent, of another kind, not finite or too large; names file, row, field and remedy.
    """
    name = f"{file}, row {row}"
    for field, meaning in _NEEDED.items():
        if record.get(field) is None:
            raise DataError(f"{name} has no field {field!r}.", f"Add it: {meaning}.")
    model = _named_text(record["model"], f"{name}: the field 'model'")
    version = _whole_number(record["version"], f"{name}: the field 'version'")
    produced_at = utc_time(record["time"], f"{name}: the field 'time'")
    known = dict(record) | {"model": model, "version": version, "time": produced_at.isoformat()}
    source = default_source
    if record.get("source") is not None:
        source = known["source"] = _named_text(record["source"], f"{name}: the field 'source'")
    if ":" in source:
        raise DataError(f"{name}: the field 'source' is {source!r}.", "Take the colon out: it ends the source in ids.")
    if record.get("record_id") is not None:
        known["record_id"] = _record_id(record["record_id"], f"{name}: the field 'record_id'")
    payload = record_payload(known, name=name)
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


def collect(folder: Path, payloads: PayloadStore, *, known: Container[str] = frozenset()) -> Collected:
    """Read every file of the inbox: good records become outputs with stored payloads, bad ones are returned as refused.

    Files stay where they are. One id twice with the same payload is one output; with another payload the later one, in
    the order of file names, is refused.

    Args:
        known: output ids recorded earlier. Their payloads are not written again, so that a deleted one stays deleted.

    Raises:
        NotFoundError: there is no such folder.
    """
    collected = Collected([], [])
    first_seen: dict[str, tuple[str, str]] = {}
    for file in read_inbox(folder):
        for found in _parsed(file, first_seen):
            if isinstance(found, Refused):
                collected.refused.append(found)
                continue
            if found.output.output_id not in known:
                payloads.put(found.payload)
            collected.outputs.append(found.output)
    return collected


def add_file(source_file: Path, inbox: Path) -> Path:
    """Check every record of a file and copy it into the inbox, under a name that begins with its digest.

    Adding the same bytes again changes nothing and returns the copy that is there.

    Raises:
        DataError: the file or a record of it is bad; the message names the first. Nothing is copied then.
    """
    if not source_file.is_file():
        raise DataError(f"There is no file {source_file}.", "Name a Parquet or JSON Lines file of outputs.")
    for found in _parsed(InboxFile(source_file, source_file.name), {}):
        if isinstance(found, Refused):
            raise DataError(found.cause)
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


def _parsed(file: InboxFile, first_seen: dict[str, tuple[str, str]]) -> Iterator[ParsedOutput | Refused]:
    """Every row of a file, understood or refused; rows that repeat an output in full are left out."""
    try:
        for row in file.rows():
            try:
                parsed = _parsed_row(file, row)
            except DataError as fault:
                yield Refused(file.name, _row_name(row), str(fault))
                continue
            output, here = parsed.output, f"{file.name}, row {row.number}"
            payload_sha256, place = first_seen.setdefault(output.output_id, (output.payload_sha256, here))
            if place == here:
                yield parsed
            elif payload_sha256 != output.payload_sha256:
                conflict = DataError(
                    f"{here}: output {output.output_id} is in {place} with other content.",
                    "Give each output a record_id of its own.",
                )
                yield Refused(file.name, output.record_id, str(conflict))
    except DataError as fault:
        yield Refused(file.name, "", str(fault))


def _parsed_row(file: InboxFile, row: Row) -> ParsedOutput:
    if row.fault is not None:
        raise row.fault
    return parse_record(row.record or {}, file=file.name, row=row.number)


def _row_name(row: Row) -> str:
    given = (row.record or {}).get("record_id")
    return given if isinstance(given, str) and 0 < len(given) <= _LONGEST_NAME else f"row {row.number}"


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
