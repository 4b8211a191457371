"""Taking single records out of an inbox: the one place where the bytes of an output lie beside its payload."""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Collection, Iterator, Mapping, Set
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from gradtrail.errors import DataError, StoreError, said
from gradtrail.storage.files.atomic import replacing
from gradtrail.storage.sources.config import SourceConfig
from gradtrail.storage.sources.files import renamed, row_name
from gradtrail.storage.sources.inbox import InboxFile, read_inbox
from gradtrail.storage.sources.outputs import parse_record

_PARQUET_MAGIC = b"PAR1"
_PRIVATE = 0o600


@dataclass(frozen=True)
class Removal:
    """How many records were taken out, and the files that may still hold some: each with the cause."""

    records: int = 0
    failed: tuple[tuple[str, str], ...] = ()


def remove_records(source: SourceConfig, output_ids: Collection[str]) -> Removal:
    """Write every file of an inbox that holds one of these outputs again without it.

    A file that is left without records is deleted. Rows that are no outputs are named as in the quarantine, `file:row
    N` or by their record id. What lies behind the damage of a file stays: it was never collected. Behind a link it is
    the file itself that is written again. A file that the disk does not give, or that cannot be replaced, stays
    and is named. What others append meanwhile stays too; a program other than gradtrail that keeps a file open must
    open it again.

    Args:
        source: an inbox in a local folder.
        output_ids: the outputs and refused records to take out.
    """
    records, failed, inbox = 0, [], Path(source.location)
    for file in read_inbox(inbox) if inbox.is_dir() else ():
        try:
            records += _remove_from(source, file, frozenset(output_ids))
        except FileNotFoundError:
            continue
        except (OSError, StoreError, pa.ArrowException) as fault:
            failed.append((file.name, " ".join(said(fault).split()).rstrip(".")))
    return Removal(records, tuple(failed))


def _remove_from(source: SourceConfig, file: InboxFile, output_ids: Set[str]) -> int:
    if not _numbers(source, file, output_ids):
        return 0
    path = file.path.resolve()  # replacing a link would leave the record in the file behind it
    with _held(path) as stream:
        # Once more: until it was held, others could write to it.
        numbers = _numbers(source, file, output_ids)
        if numbers:
            _write_without(path, stream, numbers)
    if not path.exists() and file.path.is_symlink():
        file.path.unlink()
    return len(numbers)


def _numbers(source: SourceConfig, file: InboxFile, output_ids: Set[str]) -> set[int]:
    numbers = set()
    try:
        for row in file.rows():
            record = renamed(row.record or {}, source.fields, source.constants)
            try:
                parsed = parse_record(record, place=f"{file.name}, row {row.number}", default_source=source.name)
            except DataError:
                if not output_ids.isdisjoint(_names(source, file, row.number, record)):
                    numbers.add(row.number)
                continue
            if parsed.output.output_id in output_ids:
                numbers.add(row.number)
    except DataError as fault:
        # Of damage pyarrow says OSError too, but without a number of the operating system.
        if isinstance(fault.__cause__, OSError) and fault.__cause__.errno is not None:
            raise fault.__cause__ from None
    return numbers


def _names(source: SourceConfig, file: InboxFile, number: int, record: Mapping[str, Any]) -> set[str]:
    """How a row that is no output may be called."""
    name = row_name(record, number)
    named = {f"{file.name}:{name}"}
    if name != f"row {number}":
        named |= {f"{source.name}:{name}", f"{record.get('source')}:{name}"}
    return named


@contextmanager
def _held(path: Path) -> Iterator[BinaryIO]:
    """The file at the path, locked against the processes that record calls, and against another erasure."""
    while True:
        with _opened(path) as stream:
            with suppress(OSError):  # a disk without file locks
                fcntl.flock(stream, fcntl.LOCK_EX)
            if os.path.samestat(os.fstat(stream.fileno()), path.stat()):
                yield stream
                return


def _opened(path: Path) -> BinaryIO:
    try:
        return path.open("r+b")  # network disks lock only what is open for writing
    except PermissionError:
        return path.open("rb")


def _write_without(path: Path, stream: BinaryIO, numbers: set[int]) -> None:
    """Replace the file, which `stream` has open, by one of the same mode and owner without these rows."""
    is_parquet = stream.read(len(_PARQUET_MAGIC)) == _PARQUET_MAGIC
    with replacing(path) as temporary:
        temporary.touch(_PRIVATE)
        if is_parquet:
            table = pq.read_table(path)
            left = table.filter(pa.array([place not in numbers for place in range(1, table.num_rows + 1)]))
            kept = left.num_rows
            pq.write_table(left, temporary, write_page_checksum=True)
        else:
            stream.seek(0)
            with temporary.open("wb") as target:
                kept = _copy_lines(stream, target, numbers)
                target.flush()
                os.fsync(target.fileno())
                # Whoever appends without a lock may have done so while that took its time.
                kept += _copy_lines(stream, target)
        _give_to_owner_of(stream, temporary)
    rest = b"" if is_parquet else stream.read()
    if rest:
        with path.open("ab") as target:
            target.write(rest)
    elif not kept:
        path.unlink()


def _copy_lines(stream: BinaryIO, target: BinaryIO, without: Collection[int] = ()) -> int:
    kept = 0
    for number, line in enumerate(stream, start=1):
        if number not in without:
            kept += bool(line.strip())
            target.write(line)
    return kept


def _give_to_owner_of(stream: BinaryIO, path: Path) -> None:
    state = os.fstat(stream.fileno())
    for owner, group in ((-1, state.st_gid), (state.st_uid, -1)):
        with suppress(PermissionError):
            os.chown(path, owner, group)
    path.chmod(stat.S_IMODE(state.st_mode))
