"""The ledger's file: opened by one process at a time, migrated where it is older, published as a snapshot."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import duckdb

from gradtrail.errors import LedgerError, NotFoundError
from gradtrail.lineage.chain.appending import head
from gradtrail.lineage.connections import WRITING, first_line, marked, open_database
from gradtrail.lineage.ledger.definitions import remember_known, require_known
from gradtrail.lineage.ledger.migrations import is_current, migrate
from gradtrail.lineage.ledger.published import read_published
from gradtrail.lineage.ledger.seal import copy_and_seal, read_seal
from gradtrail.lineage.readers_writer_lock import lock_of

DEFAULT_PATIENCE_SECONDS = 60.0


@dataclass(frozen=True)
class LedgerPaths:
    """Where the ledger and its published snapshot live."""

    database: Path
    snapshot: Path


class LedgerFile:
    """The one owner of the file; each call opens it, and closes it again.

    Args:
        database: the DuckDB file; created by the first write.
        snapshot: the read-only copy for everyone else; created by `publish_snapshot`.
        patience_seconds: how long a call waits for another process or thread that holds the file.

    Every method raises LedgerError when the file stays locked, is damaged, was written by a newer gradtrail, or
    defines something else than gradtrail does; `read_unmigrated` leaves the last to its caller.
    """

    def __init__(self, database: Path, snapshot: Path, *, patience_seconds: float = DEFAULT_PATIENCE_SECONDS) -> None:
        self.paths = LedgerPaths(database, snapshot)
        self.patience_seconds = patience_seconds
        self._lock = lock_of(database)

    @property
    def home(self) -> Path:
        """The folder that paths in the ledger are relative to."""
        return self.paths.database.resolve().parent

    def publish_snapshot(self) -> Path:
        """Publish a copy for readers, by rename, with its seal beside it; returns the path of the snapshot."""
        self.paths.snapshot.parent.mkdir(parents=True, exist_ok=True)
        with self._lock.exclusive(self.patience_seconds):
            with self._open_for_writing():
                pass  # closing folds what a killed writer left in the log into the file
            copy_and_seal(self.paths.database, self.paths.snapshot, patience_seconds=self.patience_seconds)
        return self.paths.snapshot

    def is_published(self, connection: duckdb.DuckDBPyConnection) -> bool:
        """Whether the snapshot's seal holds the ledger's last event; a seal that is gone or changed is verify's."""
        snapshot = self.paths.snapshot
        try:
            seal = read_seal(snapshot)
        except LedgerError:
            return True
        if seal is None:
            return snapshot.is_file()
        return head(connection) == (seal.head_sequence, seal.head_hash)

    def interrupted_writers(self) -> list[Path]:
        """Marks of writers that were killed since the last publication; those at work hold the file's lock as well."""
        return sorted(self.paths.database.parent.glob(f"{self.paths.database.name}{WRITING}*"))

    @contextmanager
    def read(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """A read-only connection on the ledger itself; close it soon, for writers wait for it.

        Raises:
            NotFoundError: nothing was recorded yet.
        """
        with self.read_unmigrated() as connection:
            require_known(connection, self.paths.database)
            current = is_current(connection)
            if current:
                yield connection
        if not current:
            with self.transaction():
                pass  # opening for writing migrates
            with self.read_unmigrated() as connection:
                yield connection

    def read_snapshot(self) -> duckdb.DuckDBPyConnection:
        """A read-only connection on the published snapshot; the caller closes it.

        One that an older gradtrail published is published anew first.

        Raises:
            NotFoundError: nothing was published yet.
        """
        return read_published(self.paths.snapshot, self.publish_snapshot)

    @contextmanager
    def read_unmigrated(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """As `read`, but whatever schema version the file has; changes nothing."""
        if not self.paths.database.is_file():
            raise NotFoundError(
                f"There is no ledger at {self.paths.database}.", "Run `gradtrail ingest` first: it records a model."
            )
        database, patience = self.paths.database, self.patience_seconds
        with (
            self._lock.shared(patience),
            open_database(database, read_only=True, patience_seconds=patience) as connection,
        ):
            yield connection

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Keep this process's other threads away from the file, to hash it."""
        with self._lock.exclusive(self.patience_seconds):
            yield

    @contextmanager
    def transaction(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """A connection that writes, in one transaction: all of it is kept at the end, or nothing."""
        self.paths.database.parent.mkdir(parents=True, exist_ok=True)
        with self._lock.exclusive(self.patience_seconds), self._open_for_writing() as connection:
            yield connection

    @contextmanager
    def _open_for_writing(self) -> Iterator[duckdb.DuckDBPyConnection]:
        database, patience = self.paths.database, self.patience_seconds
        with (
            marked(database) as mark,
            open_database(database, read_only=False, patience_seconds=patience) as connection,
        ):
            mark.touch()
            try:
                require_known(connection, database)
                current = is_current(connection)
                connection.begin()
                try:
                    if not current:
                        migrate(connection)
                    yield connection
                except BaseException:
                    connection.rollback()
                    raise
                connection.commit()
            except duckdb.Error as error:
                raise LedgerError(
                    f"Writing to the ledger {database} failed and recorded nothing: {first_line(error)}.",
                    "Check the disk, run `gradtrail verify`, then try again.",
                ) from error
        remember_known(database)
