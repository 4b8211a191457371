"""What every LanceDB table of gradtrail needs: opening once, scanning in batches, inserting only what is missing."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
from lancedb.expr import Expr
from tenacity import Retrying, retry_if_result, stop_after_delay, wait_fixed

from gradtrail.errors import StoreError

# With a primary key in the field metadata Lance detects two writers that insert the same key at once, and lets the
# second one try again on what the first has written. Without it both rows stay (seen on lancedb 0.40).
_PRIMARY_KEY_POSITION = b"lance-schema:unenforced-primary-key:position"

# Lance reads ahead up to 2 GiB of a scan, so that memory would grow with the table until then; 64 MiB read as fast.
os.environ.setdefault("LANCE_DEFAULT_IO_BUFFER_SIZE", str(64 << 20))

# Zero would be answered with a warning.
_OLDER_THAN_NOW = timedelta(milliseconds=1)
_SECONDS_FOR_A_CLOCK_TO_CATCH_UP = 3.0

_FAULTS = (OSError, RuntimeError, ValueError, pa.ArrowException)


def key_field(name: str, position: int = 1) -> pa.Field:
    """A text column that is part number `position` of the table's primary key."""
    return pa.field(name, pa.string(), nullable=False, metadata={_PRIMARY_KEY_POSITION: str(position).encode()})


class lance_faults:  # noqa: N801  # reads as a statement: with lance_faults(...)
    """Turn a failure inside LanceDB into a StoreError that says which action failed and what to do."""

    def __init__(self, action: str, remedy: str) -> None:
        self._action = action
        self._remedy = remedy

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, fault: BaseException | None, trace: Any) -> None:
        # A damaged file can make Lance's Rust panic; that exception's class cannot be imported.
        if isinstance(fault, _FAULTS) or (kind is not None and kind.__name__ == "RustPanic"):
            raise StoreError(f"{self._action} failed: {fault}", self._remedy) from fault


def open_existing(connection: Any, name: str) -> Any | None:
    """The table called `name`, or None where there is none.

    Raises:
        StoreError: the table exists and cannot be read.
    """
    with lance_faults(f"Opening the LanceDB table {name}", "Run `gradtrail verify`, or restore it from a backup."):
        try:
            return connection.open_table(name)
        except ValueError as fault:
            if "not found" in str(fault):
                return None
            raise


def open_or_create(connection: Any, name: str, schema: pa.Schema) -> Any:
    """The table called `name`; created empty where there is none. Two processes may do this at once.

    Raises:
        StoreError: the table can be neither opened nor created.
    """
    table = open_existing(connection, name)
    if table is not None:
        return table
    with lance_faults(f"Creating the LanceDB table {name}", "Check that the store's folder or bucket is writable."):
        try:
            return connection.create_table(name, schema=schema)
        except ValueError as fault:
            if "already exists" not in str(fault):
                raise
            return connection.open_table(name)


def latest_version(table: Any) -> int:
    """The newest version of a table, which its handle then shows.

    Raises:
        StoreError: the versions cannot be read.
    """
    with lance_faults(f"Reading the versions of the LanceDB table {table.name}", "Check that the store can be read."):
        table.checkout_latest()
        return int(table.version)


def scan(
    table: Any, columns: Sequence[str], *, batch_size: int, matching: Expr | None = None
) -> Iterator[pa.RecordBatch]:
    """Stream the named columns of every row, or of the rows `matching` an expression, in batches.

    Raises:
        StoreError: a file of the table is missing or damaged.
    """
    with lance_faults(
        f"Reading the LanceDB table {table.name}",
        "Restore its files from a backup; or delete the table, and run gradtrail index again.",
    ):
        query = table.search()
        if matching is not None:
            query = query.where(matching)
        yield from query.select(list(columns)).limit(None).to_batches(batch_size=batch_size)


def insert_missing(table: Any, keys: Sequence[str], rows: pa.Table) -> int:
    """Insert the rows whose key the table does not hold yet; return how many that were.

    `rows` must not repeat a key: LanceDB would write both.

    Raises:
        StoreError: nothing was written.
    """
    with lance_faults(f"Writing to the LanceDB table {table.name}", "Run the same command again: it resumes."):
        result = table.merge_insert(list(keys)).when_not_matched_insert_all().execute(rows)
    return int(result.num_inserted_rows)


def append_rows(table: Any, rows: pa.Table) -> int:
    """Append rows whose keys the table does not hold, in one commit; return its version.

    Half the price of `insert_missing`, which compares with every row that is there and copies the new ones.

    Raises:
        StoreError: nothing was written.
    """
    with lance_faults(f"Writing to the LanceDB table {table.name}", "Run the same command again: it resumes."):
        # A reader becomes one file; a table would be dealt out over the cores, which costs twice as much.
        reader = pa.RecordBatchReader.from_batches(rows.schema, rows.to_batches())
        return int(table.add(reader).version)


def compact(table: Any, *, unfinished: bool = False) -> int:
    """Gather the rows in few files and remove every earlier version; return how many of those stay.

    Lance removes what is older than now. A version from before the clock was set back is not, and keeps its files: this
    tries for three seconds, enough for the small steps that a clock is corrected by. `unfinished` removes the files of
    writes that have not ended, too, wherefore nobody else may be writing.

    Raises:
        StoreError: the table cannot be written.
    """
    attempts = Retrying(
        retry=retry_if_result(bool),
        wait=wait_fixed(0.05),
        stop=stop_after_delay(_SECONDS_FOR_A_CLOCK_TO_CATCH_UP),
        retry_error_callback=lambda state: state.outcome.result() if state.outcome else 0,
    )
    before = latest_version(table)
    with lance_faults(f"Compacting the LanceDB table {table.name}", "Run the same command again, in one process only."):
        return int(attempts(_prune, table, before, unfinished))


def gather(table: Any, *, most_files: int, keep: timedelta) -> None:
    """Where a table has more files than that, put its rows into few, and remove versions that are older than `keep`.

    Who reads a version that is removed fails and has to look again.

    Raises:
        StoreError: the table cannot be written.
    """
    with lance_faults(f"Compacting the LanceDB table {table.name}", "Run the same command again: it resumes."):
        if table.stats()["fragment_stats"]["num_fragments"] > most_files:
            table.optimize(cleanup_older_than=max(keep, _OLDER_THAN_NOW))


def _prune(table: Any, before: int, unfinished: bool) -> int:
    table.optimize(cleanup_older_than=_OLDER_THAN_NOW, delete_unverified=unfinished)
    versions = [each["version"] for each in table.list_versions()]
    return sum(version <= before for version in versions if version < max(versions))


@contextmanager
def writing_alone(connection: Any, name: str) -> Iterator[bool]:
    """Hold the table `name` against all who write to it through this, until the block is left or the process dies.

    True on a local disk. False, and nothing is held, in an object store and on a disk without file locks.

    Raises:
        StoreError: the lock beside the table cannot be made.
    """
    folder = str(connection.uri)
    if "://" in folder:
        yield False
        return
    path = Path(folder) / f"{name}.lock"
    with lance_faults(f"Opening {path}", "Check that the store's folder is writable."):
        stream = path.open("ab")
    with stream:
        try:
            # flock and not lockf: two handles in one process exclude each other too.
            fcntl.flock(stream, fcntl.LOCK_EX)
        except OSError:
            yield False
            return
        yield True
