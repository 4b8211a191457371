"""Opening the ledger and its snapshot: short, with bounded patience, and with errors that say what to do."""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import duckdb
from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_random_exponential

from gradtrail.errors import LedgerError, NotFoundError
from gradtrail.lineage import engines

_Noun = TypeVar("_Noun")
WRITING = ".writing-"
_LOCKED = ("Could not set lock", "different configuration", "Unique file handle conflict")
_SNAPSHOT_PATIENCE = 0.5
_HOLDER = re.compile(r"held in (.+?) \(PID (\d+)\)")


@contextmanager
def open_database(database: Path, *, read_only: bool, patience_seconds: float) -> Iterator[duckdb.DuckDBPyConnection]:
    """Open the ledger file and close it again; wait for other processes up to `patience_seconds`.

    Raises:
        LedgerError: another process holds the file, or the file cannot be opened as a DuckDB database.
    """
    database = database.resolve()
    connection = _connect(database, read_only=read_only, patience_seconds=patience_seconds)
    try:
        yield connection
    finally:
        engines.release(database, connection)


def open_snapshot(snapshot: Path, config: dict[str, str] | None = None) -> duckdb.DuckDBPyConnection:
    """A read-only connection on the published snapshot; the caller closes it.

    The snapshot is attached to an empty database in memory, because DuckDB would serve a second open of the same path
    from the first one's pages, also after a newer snapshot has taken the path.

    Raises:
        NotFoundError: no snapshot was published yet.
        LedgerError: a program that may write holds the file, or it cannot be opened as a DuckDB database.
    """
    if not snapshot.is_file():
        raise NotFoundError(
            f"There is no ledger snapshot at {snapshot}.",
            "Run `gradtrail ingest` or `gradtrail audit` first: each publishes one at its end.",
        )
    connection = duckdb.connect(":memory:", config=dict(config or {}))
    try:
        _retrying(_SNAPSHOT_PATIENCE, duckdb.Error)(engines.attach, connection, snapshot, read_only=True)
    except duckdb.Error as error:
        connection.close()
        raise _held(snapshot, error) if _is_lock(error) else damaged(snapshot, error) from error
    return connection


@contextmanager
def marked(database: Path) -> Iterator[Path]:
    """A path for the mark of a writer, to be created once the file is open; it goes at the end, but not by a kill.

    So a mark without a writer says that the bytes of the file may be half-written.
    """
    mark = database.with_name(f"{database.name}{WRITING}{os.getpid()}")
    try:
        yield mark
    finally:
        mark.unlink(missing_ok=True)


@contextmanager
def shared_file(path: Path, *, patience_seconds: float) -> Iterator[BinaryIO]:
    """Open a file for reading its bytes while no other process may write it: the lock DuckDB itself uses.

    Enter the exclusive lock first: closing the file drops every lock this process has on it.
    """
    while True:
        with path.open("rb") as stream:
            _retrying(patience_seconds, OSError)(fcntl.lockf, stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
            if os.fstat(stream.fileno()).st_ino == _inode(path):  # else it was replaced while this waited
                yield stream
                return


def first_row(
    connection: duckdb.DuckDBPyConnection, query: str, parameters: Sequence[Any] = ()
) -> tuple[Any, ...] | None:
    """The first row of a query. Fetches all of them: DuckDB refuses other work beside an unfinished result."""
    rows: list[tuple[Any, ...]] = connection.execute(query, list(parameters)).fetchall()
    return rows[0] if rows else None


def is_damage(error: LedgerError) -> bool:
    """Whether the error says that the file cannot be read, rather than that somebody holds it."""
    return isinstance(error.__cause__, duckdb.Error) and not _is_lock(error.__cause__)


def damaged(path: Path, error: duckdb.Error) -> LedgerError:
    """The error for a file that DuckDB cannot read."""
    return LedgerError(
        f"{path} cannot be read as a ledger: {first_line(error)}.",
        "Run `gradtrail verify` and restore the file from a copy.",
    )


def _held(snapshot: Path, error: duckdb.Error) -> LedgerError:
    holder = _HOLDER.search(str(error))
    who = f"{holder[1]} (process {holder[2]})" if holder else "another program"
    return LedgerError(
        f"The snapshot {snapshot} is locked: {who} has it open for writing.",
        "Close it there, or open it read-only (duckdb -readonly, read_only=True), and try again. Nothing is damaged.",
    )


def first_line(error: duckdb.Error) -> str:
    """DuckDB's message without its context lines and its full stop."""
    return str(error).strip().split("\n", 1)[0].rstrip(".")


def _connect(database: Path, *, read_only: bool, patience_seconds: float) -> duckdb.DuckDBPyConnection:
    try:
        while True:
            before = _inode(database)
            connection = _retrying(patience_seconds, duckdb.Error)(engines.use, database, read_only=read_only)
            # Erasing replaces the file while it holds the lock; what was opened before and locked after is the old one.
            if before in (None, _inode(database)):
                return connection
            engines.release(database, connection)
    except duckdb.Error as error:
        if _is_lock(error):
            raise LedgerError(
                f"The ledger {database} was locked by another process for {patience_seconds:g} s: {first_line(error)}.",
                "Wait until that process has finished, or close the program that has the file open, then try again.",
            ) from error
        raise damaged(database, error) from error


def recorded(found: _Noun | None, identifier: str) -> _Noun:
    """What another row of the ledger refers to, which therefore must be there.

    Raises:
        LedgerError: it is None.
    """
    if found is None:
        raise LedgerError(f"{identifier} is missing from the ledger.", "Run `gradtrail verify` to see what else is.")
    return found


def _inode(path: Path) -> int | None:
    return path.stat().st_ino if path.exists() else None


def _retrying(patience_seconds: float, kind: type[Exception]) -> Retrying:
    return Retrying(
        retry=retry_if_exception(lambda error: isinstance(error, kind) and _is_lock(error)),
        stop=stop_after_delay(patience_seconds),
        wait=wait_random_exponential(multiplier=0.01, max=0.25),
        reraise=True,
    )


def _is_lock(error: BaseException) -> bool:
    if isinstance(error, duckdb.Error):
        return any(sign in str(error) for sign in _LOCKED)
    return isinstance(error, BlockingIOError | PermissionError)
