"""In-memory databases that ledger files are attached to: making one takes 30 ms of CPU, attaching a file 10."""

from __future__ import annotations

import atexit
import os
import threading
from dataclasses import dataclass
from pathlib import Path

import duckdb

LEDGER = "ledger"
"""The name that a ledger or snapshot has wherever it is attached."""
# Every column of every table takes at least one block: 13 MB for an almost empty ledger at DuckDB's default of 256 KiB.
BLOCK_BYTES = 16384
_IDLE = 2


def attach(connection: duckdb.DuckDBPyConnection, database: Path, *, read_only: bool) -> None:
    """Attach a file as LEDGER and use it. Raises duckdb.Error where it is locked or is no database."""
    quoted = str(database).replace("'", "''")
    connection.execute(f"ATTACH '{quoted}' AS {LEDGER} (TYPE duckdb{', READ_ONLY' if read_only else ''})")
    connection.execute(f"USE {LEDGER}")
    connection.execute("SET TimeZone = 'UTC'")


@dataclass
class _Attached:
    """A file that is attached now, and how many connections read it."""

    engine: duckdb.DuckDBPyConnection
    read_only: bool
    connections: int = 1


class _Engines:
    """The in-memory databases of this process: those with a file attached, by its path, and idle ones."""

    def __init__(self) -> None:
        self._changing = threading.Lock()
        self._attached: dict[Path, _Attached] = {}
        self._idle: list[duckdb.DuckDBPyConnection] = []
        self._inherited: list[object] = []

    def begin_anew(self) -> None:
        """Leave alone what a forked process inherits: closing a database waits for threads that only the parent has."""
        self._inherited += [self._attached, self._idle]
        self._changing, self._attached, self._idle = threading.Lock(), {}, []

    def open(self, database: Path, *, read_only: bool) -> duckdb.DuckDBPyConnection:
        """A connection that uses the file; give it back with `close`. Readers of one file share what is attached.

        They must: a process that closes any handle of a file loses its lock on it.
        """
        with self._changing:
            attached = self._attached.get(database)
            if attached is not None:
                if attached.read_only != read_only:
                    raise duckdb.ConnectionException(f"{database} is open here with a different configuration")
                connection = attached.engine.cursor()
                connection.execute(f"USE {LEDGER}")
                connection.execute("SET TimeZone = 'UTC'")
                attached.connections += 1
                return connection
            engine = self._engine_for(database)
            connection = engine.cursor()
            try:
                attach(connection, database, read_only=read_only)
            except duckdb.Error:
                connection.close()
                self._idle.append(engine)
                raise
            self._attached[database] = _Attached(engine, read_only)
            return connection

    def close(self, database: Path, connection: duckdb.DuckDBPyConnection) -> None:
        """Close a connection; the last of a file folds its log into it and lets go of it."""
        with self._changing:
            connection.close()
            attached = self._attached[database]
            attached.connections -= 1
            if attached.connections:
                return
            del self._attached[database]
            try:
                attached.engine.execute(f"DETACH {LEDGER}")
            except duckdb.Error:
                attached.engine.close()  # a connection of a caller's own still uses the file
                raise
            if len(self._idle) < _IDLE:
                self._idle.append(attached.engine)
            else:
                attached.engine.close()

    def end(self) -> None:
        """Close those that are idle: DuckDB's binding names at the end of a process what is still open."""
        while self._idle:
            self._idle.pop().close()

    def _engine_for(self, database: Path) -> duckdb.DuckDBPyConnection:
        """An idle database, or a new one, that puts what does not fit into memory beside the file."""
        beside = f"{database}.tmp"
        while self._idle:
            engine = self._idle.pop()
            try:
                engine.execute("SET GLOBAL temp_directory = ?", [beside])
                return engine
            except duckdb.Error:
                engine.close()  # it has used the folder of another file, and keeps to it
        return duckdb.connect(":memory:", config={"default_block_size": str(BLOCK_BYTES), "temp_directory": beside})


_engines = _Engines()


def use(database: Path, *, read_only: bool) -> duckdb.DuckDBPyConnection:
    """A connection that uses a file, by its resolved path; give it to `release`.

    Raises:
        duckdb.Error: the file is locked, is no database, or is open in this process for the other kind of work.
    """
    return _engines.open(database, read_only=read_only)


def release(database: Path, connection: duckdb.DuckDBPyConnection) -> None:
    """Close what `use` gave; the last connection of a file folds its log into it and lets go of it."""
    _engines.close(database, connection)


def second(connection: duckdb.DuckDBPyConnection) -> duckdb.DuckDBPyConnection:
    """Another connection that uses the same file: two streams of one connection would end each other."""
    used = connection.execute("SELECT current_database()").fetchall()[0][0]
    made = connection.cursor()
    quoted = used.replace('"', '""')
    made.execute(f'USE "{quoted}"')
    made.execute("SET TimeZone = 'UTC'")
    return made


atexit.register(_engines.end)
os.register_at_fork(after_in_child=_engines.begin_anew)
