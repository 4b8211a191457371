"""A folder or object-store prefix of Parquet and JSON Lines as a source: unchanged files are not read again."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from datetime import datetime
from operator import itemgetter
from pathlib import Path
from typing import Any

from pyarrow import ArrowException
from pyarrow.fs import FileInfo, FileSelector, FileSystem, FileType, FSSpecHandler, LocalFileSystem, PyFileSystem

from gradtrail.errors import DataError, NotFoundError, StoreError, UsageError
from gradtrail.storage.sources.inbox import READABLE_REMEDY, InboxFile, Row, is_complete
from gradtrail.storage.sources.rows import Arrival, FileGone, FileMark, Settled

_CHUNK_BYTES = 1 << 20
_LONGEST_NAME = 512


class FileSource:
    """The files below one prefix, at any depth, by the path from there on.

    Args:
        location: a local folder, or a URI such as `s3://bucket/prefix`.

    Raises:
        UsageError: no filesystem understands the URI.
    """

    def __init__(self, location: str, fields: Mapping[str, str], constants: Mapping[str, Any]) -> None:
        self.location = location
        self._filesystem, self._prefix = filesystem_of(location)
        self._fields, self._constants = fields, constants

    def arrivals(
        self,
        since: datetime | None,  # noqa: ARG002 - a late file is still a new file
        marks: Mapping[str, FileMark],
    ) -> Iterator[Arrival | FileMark | FileGone]:
        """Rows of the files that are new or changed. Of a JSON Lines file that only grew, the rows that were added.

        Raises:
            NotFoundError: there is no such folder.
            StoreError: the store cannot be listed now.
        """
        listed = dict(self._listed())
        for name, info in listed.items():
            before = marks.get(name)
            if before is None or (before.size, before.modified) != (info.size, _modified(info)):
                yield from self._file_arrivals(name, info, before)
        if listed:  # a folder without any file may be a disk that is not mounted
            yield from (FileGone(name) for name in marks if name not in listed)

    def settle(self, settled: Collection[Settled]) -> None:
        """Files stay where they are."""

    def _listed(self) -> list[tuple[str, FileInfo]]:
        try:
            found = self._filesystem.get_file_info(FileSelector(self._prefix, recursive=True))
        except FileNotFoundError as fault:
            raise NotFoundError(
                f"There is no inbox at {self.location}.", "Create the folder, or name another one in the settings."
            ) from fault
        except (OSError, ArrowException) as fault:
            remedy = READABLE_REMEDY if isinstance(fault, PermissionError) else "Check address and credentials."
            raise StoreError(f"{self.location} cannot be listed: {fault}.", remedy) from fault
        named = [(self._name(info), info) for info in found if info.type != FileType.Directory]
        return sorted(((name, info) for name, info in named if is_complete(name)), key=itemgetter(0))

    def _name(self, info: FileInfo) -> str:
        try:
            path: str = info.path
        except UnicodeDecodeError as fault:
            path = fault.object.decode(errors="backslashreplace")
        return path.strip("/").removeprefix(self._prefix.strip("/")).lstrip("/")

    def _file_arrivals(self, name: str, info: FileInfo, before: FileMark | None) -> Iterator[Arrival | FileMark]:
        is_file = info.type == FileType.File
        is_local = isinstance(self._filesystem, LocalFileSystem)
        try:
            file = InboxFile(Path(info.path), name, None if is_local else self._filesystem)
        except UnicodeDecodeError:
            yield Arrival(name, name, "", None, DataError(f"The name of {name} is not UTF-8.", "Rename it."))
            return
        mark = FileMark(name, info.size or 0, _modified(info), "", 0)
        if is_file:
            # What is appended from now on is for the next look.
            mark = replace(mark, sha256=self._digest(file, mark.size)) if is_local else mark
            if before is not None and is_local and before.sha256:
                if mark.size == before.size and mark.sha256 == before.sha256:
                    yield replace(mark, rows=before.rows)
                    return
                if not self._only_grew(file, before, mark.size):
                    before = None
            else:
                before = None
        start, rows = (before.size, before.rows) if before is not None else (0, 0)
        try:
            for row in file.rows(start=start, first_number=rows + 1, end=mark.size if is_file else None):
                rows = row.number
                yield self._arrival(name, row)
        except DataError as fault:
            yield Arrival(name, name, "", None, fault)
            if isinstance(fault.__cause__, OSError):
                return
            # It stays closed until it changes, and is then read from its beginning.
            mark, rows = replace(mark, sha256=""), 0
        if is_file:
            yield replace(mark, rows=rows)

    def _arrival(self, name: str, row: Row) -> Arrival:
        place = f"{name}, row {row.number}"
        record = renamed(row.record, self._fields, self._constants) if row.record is not None else None
        return Arrival(name, place, row_name(record, row.number), record, row.fault)

    def _only_grew(self, file: InboxFile, before: FileMark, size: int) -> bool:
        if not file.is_json_lines() or not 0 < before.size < size:
            return False
        try:
            with file.open() as stream:
                stream.seek(before.size - 1)
                ended = stream.read(1) == b"\n"
        except OSError:
            return False  # reading its rows says why
        return ended and self._digest(file, before.size) == before.sha256

    def _digest(self, file: InboxFile, size: int) -> str:
        digest, left = hashlib.sha256(), size
        try:
            with file.open() as stream:
                while left and (piece := stream.read(min(_CHUNK_BYTES, left))):
                    digest.update(piece)
                    left -= len(piece)
        except OSError:
            return ""  # reading its rows says why
        return digest.hexdigest()


def filesystem_of(location: str) -> tuple[FileSystem, str]:
    """The filesystem of a local folder or URI, and the path in it.

    Raises:
        UsageError: no filesystem understands the URI.
    """
    if "://" not in location:
        return LocalFileSystem(), str(Path(location).resolve())
    try:
        filesystem, path = FileSystem.from_uri(location)
    except (ArrowException, ValueError):
        filesystem, path = _fsspec_filesystem(location)
    return filesystem, path


def renamed(record: Mapping[str, Any], fields: Mapping[str, str], constants: Mapping[str, Any]) -> dict[str, Any]:
    """A record whose `fields` are filled from the columns they name, with the constants added."""
    found = {field: record[column] for field, column in fields.items() if column in record}
    kept = {column: value for column, value in record.items() if column not in fields.values()}
    return kept | found | dict(constants)


def row_name(record: Mapping[str, Any] | None, number: int) -> str:
    """The record's own id where it can be one, else its row."""
    given = (record or {}).get("record_id")
    is_name = isinstance(given, str) and 0 < len(given) <= _LONGEST_NAME and given.isprintable()
    return str(given) if is_name else f"row {number}"


def _fsspec_filesystem(location: str) -> tuple[FileSystem, str]:
    from fsspec.core import url_to_fs  # torch brings it

    try:
        found, path = url_to_fs(location)
    except (ImportError, ValueError, OSError) as fault:
        raise UsageError(
            f"{location} is on no filesystem that is known here: {fault}.",
            "Give a folder, s3://bucket/prefix, gs://bucket/prefix, or install the fsspec package of its scheme.",
        ) from fault
    return PyFileSystem(FSSpecHandler(found)), path


def _modified(info: FileInfo) -> str:
    return str(info.mtime_ns or "")
