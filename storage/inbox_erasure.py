"""Taking single records out of an inbox: the one place where the bytes of an output lie beside its payload."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from gradtrail.errors import DataError
from gradtrail.storage.atomic import replacing
from gradtrail.storage.inbox import InboxFile, read_inbox
from gradtrail.storage.outputs import parse_record
from gradtrail.storage.source_config import SourceConfig
from gradtrail.storage.source_files import renamed

_PARQUET_MAGIC = b"PAR1"


def remove_records(source: SourceConfig, output_ids: Collection[str]) -> int:
    """Write every file of an inbox that holds one of these outputs again without it; return how many records went.

    A file that is left without records is deleted. Rows that are no outputs stay; so does a file that cannot be read.

    Args:
        source: an inbox in a local folder.
        output_ids: the outputs to take out.
    """
    removed, inbox = 0, Path(source.location)
    for file in read_inbox(inbox) if inbox.is_dir() else ():
        numbers = _numbers(source, file, output_ids)
        if numbers:
            _write_without(file.path, numbers)
            removed += len(numbers)
    return removed


def _numbers(source: SourceConfig, file: InboxFile, output_ids: Collection[str]) -> set[int]:
    numbers = set()
    try:
        for row in file.rows():
            record = renamed(row.record or {}, source.fields, source.constants)
            try:
                parsed = parse_record(record, place=f"{file.name}, row {row.number}", default_source=source.name)
            except DataError:
                continue
            if parsed.output.output_id in output_ids:
                numbers.add(row.number)
    except DataError:
        pass  # what can be read up to the fault is all that collecting ever took from this file
    return numbers


def _write_without(path: Path, numbers: set[int]) -> None:
    with path.open("rb") as stream:
        is_parquet = stream.read(len(_PARQUET_MAGIC)) == _PARQUET_MAGIC
    if is_parquet:
        table = pq.read_table(path)
        left = table.filter(pa.array([place not in numbers for place in range(1, table.num_rows + 1)]))
        kept = left.num_rows
        with replacing(path) as temporary:
            pq.write_table(left, temporary, write_page_checksum=True)
    else:
        kept = 0
        with replacing(path) as temporary, path.open("rb") as stream, temporary.open("wb") as target:
            for number, line in enumerate(stream, start=1):
                if number not in numbers:
                    kept += bool(line.strip())
                    target.write(line)
    if not kept:
        path.unlink()
