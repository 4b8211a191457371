"""Files of outputs, as they lie in the inbox: Parquet tables and JSON Lines, read record by record."""

from __future__ import annotations

import codecs
import io
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow.fs import FileSystem

from gradtrail.errors import DataError, NotFoundError
from gradtrail.storage.files.atomic import TEMPORARY_SUFFIX
from gradtrail.storage.sources.payload_json import RECORD_BYTES_LIMIT

JSON_LINES_SUFFIXES = (".jsonl", ".ndjson")
READABLE_REMEDY = "Run audits as the user that records outputs, or let the serving code write to a source of its own."
_PARQUET_MAGIC = b"PAR1"
_ROWS_AT_ONCE = 64
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class Row:
    """One record of a file, or the reason why it is none. `number` counts from 1: rows of a table, lines of a text."""

    number: int
    record: dict[str, Any] | None
    fault: DataError | None = None


@dataclass(frozen=True)
class InboxFile:
    """One entry of the inbox. `name` is what messages call it; without a `filesystem` it is a local file."""

    path: Path
    name: str
    filesystem: FileSystem | None = None

    def open(self) -> BinaryIO:
        """Its bytes, from the beginning."""
        if self.filesystem is None:
            return self.path.open("rb")
        return cast("BinaryIO", io.BufferedReader(self.filesystem.open_input_file(str(self.path)), _CHUNK_BYTES))

    def is_json_lines(self) -> bool:
        """Whether its name says JSON Lines."""
        return self.path.suffix.lower() in JSON_LINES_SUFFIXES

    def rows(self, *, start: int = 0, first_number: int = 1, end: int | None = None) -> Iterator[Row]:
        """Stream its rows. The format is told by content: a Parquet file begins with PAR1.

        Args:
            start: byte from which JSON Lines are read, the beginning of the row `first_number`.
            end: byte before which the reading of JSON Lines ends; default: the end of the file.

        Raises:
            DataError: it is neither Parquet nor JSON Lines, is damaged, or is not UTF-8.
        """
        try:
            if self.filesystem is None and not self.path.is_file():
                raise DataError(f"{self.name} is not a file.", "Put Parquet or JSON Lines files in the inbox.")
            with self.open() as stream:
                is_parquet = stream.read(len(_PARQUET_MAGIC)) == _PARQUET_MAGIC
            if is_parquet:
                yield from self._parquet_rows()
            elif self.is_json_lines():
                self._require_utf8(start, end)
                yield from self._json_rows(start, first_number, end)
            else:
                raise DataError(
                    f"{self.name} is neither a Parquet file nor JSON Lines.",
                    f"Write outputs as Parquet, or one JSON object a line in a file named *{JSON_LINES_SUFFIXES[0]}.",
                )
        except OSError as fault:
            remedy = READABLE_REMEDY if isinstance(fault, PermissionError) else "Check the file and the disk."
            raise DataError(f"{self.name} cannot be read: {fault}.", remedy) from fault

    def _parquet_rows(self) -> Iterator[Row]:
        number = 0
        try:
            with self.open() as stream, pq.ParquetFile(stream, page_checksum_verification=True) as table:
                for batch in table.iter_batches(batch_size=_rows_at_once(table.metadata)):
                    for row in self._batch_rows(batch, number + 1):
                        number += 1
                        yield row
                # A damaged page header can end the reading early without an error.
                if number != table.metadata.num_rows:
                    raise ValueError(f"it says that it holds {table.metadata.num_rows} rows")
        except (pa.ArrowException, ValueError, OverflowError) as fault:
            raise DataError(
                f"{self.name} is a damaged or half-written Parquet file, readable up to row {number}: {fault}.",
                "Write it again, under a name that ends in .tmp until it is complete.",
            ) from fault

    def _batch_rows(self, batch: pa.RecordBatch, first_number: int) -> Iterator[Row]:
        if batch.nbytes <= RECORD_BYTES_LIMIT:
            for number, record in enumerate(batch.to_pylist(), first_number):
                yield Row(number, record)
            return
        for place in range(batch.num_rows):
            number, row = first_number + place, batch.slice(place, 1)
            if row.nbytes > RECORD_BYTES_LIMIT:
                yield Row(number, None, _fault(self.name, number, "is larger than 16 MB", "Split or shorten it."))
            else:
                yield Row(number, row.to_pylist()[0])

    def _require_utf8(self, start: int, end: int | None) -> None:
        decoder = codecs.getincrementaldecoder("utf-8")()
        with self.open() as stream:
            head = stream.read(len(codecs.BOM_UTF16_LE))
            if head in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
                raise DataError(f"{self.name} is not UTF-8: it begins as UTF-16 does.", "Save it as UTF-8.")
            stream.seek(start)
            left = sys.maxsize if end is None else end - start
            try:
                while left > 0 and (chunk := stream.read(min(_CHUNK_BYTES, left))):
                    left -= len(chunk)
                    decoder.decode(chunk)
                # A writer may be in the middle of a character at `end`; that line is judged by itself.
                decoder.decode(b"", final=end is None)
            except UnicodeDecodeError as fault:
                raise DataError(f"{self.name} is not UTF-8: {fault}.", "Save it as UTF-8.") from fault

    def _json_rows(self, start: int, first_number: int, end: int | None) -> Iterator[Row]:
        with self.open() as stream:
            stream.seek(start)
            number = first_number - 1
            left = sys.maxsize if end is None else end - start
            while left > 0 and (line := stream.readline(min(RECORD_BYTES_LIMIT + 1, left))):
                number += 1
                left -= len(line)
                if len(line) > RECORD_BYTES_LIMIT:
                    left -= _skip_line(stream, line)
                    yield Row(number, None, _fault(self.name, number, "is longer than 16 MB", "Split or shorten it."))
                elif line.strip():
                    yield _json_row(self.name, number, line.removeprefix(codecs.BOM_UTF8))


def read_inbox(folder: Path) -> Iterator[InboxFile]:
    """Every entry of the inbox and of the folders in it, by name, but folders and what `is_complete` leaves out.

    Raises:
        NotFoundError: there is no such folder.
    """
    if not folder.is_dir():
        raise NotFoundError(
            f"There is no inbox at {folder}.", "Create the folder, or name another one in the settings."
        )
    # Through links to folders too, as a source reads it.
    found = [Path(parent, name) for parent, _, names in os.walk(folder, followlinks=True) for name in names]
    for path in sorted(found):
        name = path.relative_to(folder).as_posix()
        if is_complete(name):
            yield InboxFile(path, name)


def is_complete(name: str) -> bool:
    """Whether the path `name` below an inbox can be a whole file of records, by its name alone.

    Names that begin with a dot or end in `.tmp` are still being written. Folders that begin with an underscore, and
    files that do and have no suffix, are the notes of what wrote the others: `_temporary/`, `_delta_log/`, `_SUCCESS`.
    """
    *folders, file = name.split("/")
    if file.startswith(".") or file.endswith(TEMPORARY_SUFFIX) or (file.startswith("_") and "." not in file):
        return False
    return not any(each.startswith((".", "_")) for each in folders)


def read_records(path: Path) -> list[dict[str, Any]]:
    """All records of one Parquet or JSON Lines file.

    Raises:
        DataError: the file, or the first row of it that is no record.
    """
    records = []
    for row in InboxFile(path, path.name).rows():
        if row.record is None:
            raise row.fault or _fault(path.name, row.number, "is empty", "Remove it.")
        records.append(row.record)
    return records


def _json_row(name: str, number: int, line: bytes) -> Row:
    try:
        record = json.loads(line.decode(), object_pairs_hook=_distinct)
    except (ValueError, RecursionError) as fault:
        return Row(number, None, _fault(name, number, f"is not JSON ({fault})", "Write one JSON object a line."))
    if not isinstance(record, dict):
        return Row(number, None, _fault(name, number, "is not a JSON object", "Write one JSON object a line."))
    return Row(number, record)


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a key comes twice in one object")
    return members


def _rows_at_once(metadata: pq.FileMetaData) -> int:
    stored = sum(metadata.row_group(place).total_byte_size for place in range(metadata.num_row_groups))
    return max(1, min(_ROWS_AT_ONCE, int(RECORD_BYTES_LIMIT * metadata.num_rows // max(stored, 1))))


def _skip_line(stream: BinaryIO, start: bytes) -> int:
    skipped = 0
    while start and not start.endswith(b"\n"):
        start = stream.readline(_CHUNK_BYTES)
        skipped += len(start)
    return skipped


def _fault(name: str, number: int, what: str, remedy: str) -> DataError:
    return DataError(f"{name}, row {number} {what}.", remedy)
