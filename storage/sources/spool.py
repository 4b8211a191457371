"""What was read from sources and is not in the ledger yet, and what was decided about the rest; in one sqlite file.

A record is kept here before the ledger has it, and released after. A kill on the way therefore costs a repetition,
which the ids make harmless, and never a record. If the file is lost, sources are read again from their watermarks.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gradtrail.digests import sha256_json
from gradtrail.nouns import Fate, Output, Watermark
from gradtrail.storage.sources.outputs import ParsedOutput, Refused
from gradtrail.storage.sources.rows import FileGone, FileMark

_PATIENCE_SECONDS = 60.0
_AT_ONCE = 500
_ANY_TIME = datetime.max.replace(tzinfo=UTC)
_TABLES = """
CREATE TABLE IF NOT EXISTS held (
    output_id TEXT PRIMARY KEY, origin TEXT NOT NULL, source TEXT NOT NULL, record_id TEXT NOT NULL,
    produced_at TEXT NOT NULL, model_version_id TEXT NOT NULL, payload_sha256 TEXT NOT NULL, payload BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS decided (
    origin TEXT NOT NULL, key TEXT NOT NULL, verdict TEXT NOT NULL, cause TEXT NOT NULL, produced_at TEXT,
    file TEXT NOT NULL DEFAULT '', PRIMARY KEY (origin, key));
CREATE TABLE IF NOT EXISTS refusal (
    place INTEGER PRIMARY KEY, origin TEXT NOT NULL, source TEXT NOT NULL, record_id TEXT NOT NULL,
    cause TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS file_mark (
    origin TEXT NOT NULL, name TEXT NOT NULL, size INTEGER NOT NULL, modified TEXT NOT NULL, sha256 TEXT NOT NULL,
    rows INTEGER NOT NULL, PRIMARY KEY (origin, name));
CREATE TABLE IF NOT EXISTS total (
    origin TEXT PRIMARY KEY, kind TEXT NOT NULL, reached TEXT, taken INTEGER NOT NULL, sampled_out INTEGER NOT NULL,
    refused INTEGER NOT NULL);
"""


@dataclass
class Decisions:
    """What a run decided about some records, to be kept in one step. Keys tell records apart within their source.

    `files` says in which file a record lies that was left out now or earlier, by output id.
    """

    taken: list[ParsedOutput] = field(default_factory=list)
    sampled_out: list[Output] = field(default_factory=list)
    refused: list[tuple[str, Refused]] = field(default_factory=list)
    marks: list[FileMark | FileGone] = field(default_factory=list)
    reached: datetime | None = None
    files: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Held:
    """An output that waits to be recorded, and its payload."""

    output: Output
    payload: bytes


class Spool:
    """The open file; `origin` is the name of the source that something was read from."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def marks(self, origin: str) -> dict[str, FileMark]:
        """Files of a source that were read, by name."""
        query = "SELECT name, size, modified, sha256, rows FROM file_mark WHERE origin = ?"
        return {row[0]: FileMark(*row) for row in self._connection.execute(query, [origin])}

    def held_payloads(self, output_ids: Sequence[str]) -> dict[str, str]:
        """The payload digests of those outputs that wait here, by id."""
        query = "SELECT output_id, payload_sha256 FROM held WHERE output_id IN"
        return {row[0]: row[1] for row in self._by_key(query, output_ids)}

    def decided(self, origin: str, keys: Sequence[str]) -> dict[str, tuple[Fate, str]]:
        """Fate and cause of those records that were sampled out or refused before, by key."""
        query = "SELECT key, verdict, cause FROM decided WHERE origin = ? AND key IN"
        return {key: (fate, cause) for key, fate, cause in self._by_key(query, keys, [origin])}

    def keep(self, origin: str, decisions: Decisions) -> None:
        """Keep decisions, all or none; what is there already is not counted again."""
        with self._connection as connection:
            taken = sum(self._hold(origin, each) for each in decisions.taken)
            sampled_out = sum(
                self._decide(origin, each.output_id, "sampled_out", "", each.produced_at)
                for each in decisions.sampled_out
            )
            refused = 0
            for key, each in decisions.refused:
                if self._decide(origin, key, "refused", each.cause, None):
                    refused += 1
                    insert = "INSERT INTO refusal (origin, source, record_id, cause) VALUES (?, ?, ?, ?)"
                    connection.execute(insert, [origin, each.source, each.record_id, each.cause])
            query = "UPDATE decided SET file = ? WHERE origin = ? AND key = ? AND verdict = 'sampled_out'"
            connection.executemany(query, [[file, origin, key] for key, file in decisions.files.items()])
            gone = [mark.name for mark in decisions.marks if isinstance(mark, FileGone)]
            self._by_key("DELETE FROM file_mark WHERE origin = ? AND name IN", gone, [origin])
            self._by_key("UPDATE decided SET file = '' WHERE origin = ? AND file IN", gone, [origin])
            for mark in decisions.marks:
                if isinstance(mark, FileMark):
                    row = [origin, mark.name, mark.size, mark.modified, mark.sha256, mark.rows]
                    connection.execute("INSERT OR REPLACE INTO file_mark VALUES (?, ?, ?, ?, ?, ?)", row)
            connection.execute(
                "UPDATE total SET taken = taken + ?, sampled_out = sampled_out + ?, refused = refused + ?, "
                "reached = max(coalesce(reached, ''), coalesce(?, reached, '')) WHERE origin = ?",
                [taken, sampled_out, refused, _text(decisions.reached), origin],
            )

    def ready(
        self, origin: str, model_version_ids: Collection[str], limit: int, until: datetime = _ANY_TIME
    ) -> list[Held]:
        """The first outputs of a source that wait, as they were taken: of these versions, and made `until` then."""
        query = (
            "SELECT output_id, source, record_id, produced_at, model_version_id, payload_sha256, payload "
            "FROM held WHERE origin = ? AND produced_at <= ? AND model_version_id IN"
        )
        given = [origin, str(_text(until))]
        found = self._by_key(query, sorted(model_version_ids), given, f" ORDER BY rowid LIMIT {int(limit)}")
        return [
            Held(Output(row[0], row[1], row[2], datetime.fromisoformat(row[3]), row[4], row[5]), row[6])
            for row in found
        ]

    def release(self, output_ids: Sequence[str]) -> None:
        """Let go of outputs that the ledger has."""
        with self._connection as connection:
            connection.executemany("DELETE FROM held WHERE output_id = ?", [[each] for each in output_ids])

    def refusals(self, origin: str) -> list[tuple[int, Refused]]:
        """What was refused and is not in the ledger yet, each with its place here."""
        query = "SELECT place, source, record_id, cause FROM refusal WHERE origin = ? ORDER BY place"
        return [(row[0], Refused(*row[1:])) for row in self._connection.execute(query, [origin]).fetchall()]

    def all_refusals(self) -> list[Refused]:
        """The same of every source."""
        query = "SELECT source, record_id, cause FROM refusal ORDER BY place"
        return [Refused(*row) for row in self._connection.execute(query).fetchall()]

    def reported(self, places: Sequence[int]) -> None:
        """Let go of refusals that the ledger has."""
        with self._connection as connection:
            connection.executemany("DELETE FROM refusal WHERE place = ?", [[each] for each in places])

    def begin(self, recorded: Watermark) -> None:
        """Count a source on from what the ledger has, where nothing is counted here yet."""
        row = [recorded.source, recorded.kind, _text(recorded.reached)]
        row_counts = [recorded.taken, recorded.sampled_out, recorded.refused]
        with self._connection as connection:
            connection.execute("INSERT OR IGNORE INTO total VALUES (?, ?, ?, ?, ?, ?)", [*row, *row_counts])

    def watermark(self, origin: str) -> Watermark:
        """How far a source was read and what is counted."""
        query = (
            "SELECT kind, reached, taken, sampled_out, refused, "
            "(SELECT count(*) FROM held WHERE held.origin = total.origin) FROM total WHERE origin = ?"
        )
        [(kind, reached, taken, sampled_out, refused, waiting)] = self._connection.execute(query, [origin]).fetchall()
        moment = datetime.fromisoformat(reached) if reached else None
        seen = taken + sampled_out + refused
        return Watermark(origin, kind, moment, seen, taken, sampled_out, refused, waiting)

    def forget_before(self, origin: str, moment: datetime) -> None:
        """Forget what was sampled out and lies before every later reading, and in no file that may be read again."""
        with self._connection as connection:
            connection.execute(
                "DELETE FROM decided WHERE origin = ? AND verdict = 'sampled_out' AND file = '' AND produced_at < ?",
                [origin, _text(moment)],
            )

    def waiting(self) -> list[tuple[str, str, int]]:
        """Outputs that wait, as source, model version and count."""
        query = "SELECT origin, model_version_id, count(*) FROM held GROUP BY 1, 2 ORDER BY 1, 2"
        return [(row[0], row[1], row[2]) for row in self._connection.execute(query).fetchall()]

    def ahead(self, until: datetime) -> dict[tuple[str, str], tuple[int, datetime]]:
        """Outputs that wait and were made after then: count and earliest time, by source and model version."""
        query = (
            "SELECT origin, model_version_id, count(*), min(produced_at) FROM held WHERE produced_at > ? GROUP BY 1, 2"
        )
        found = self._connection.execute(query, [_text(until)]).fetchall()
        return {(row[0], row[1]): (row[2], datetime.fromisoformat(row[3])) for row in found}

    def forget_outputs(self, output_ids: Collection[str], names: Collection[str], kept: Collection[str]) -> int:
        """Erase outputs that wait and the causes of refusals, which quote records; returns how many waited.

        Args:
            output_ids: outputs that may wait here, or refused records as `file:name`.
            names: record ids of refused records.
            kept: keys of refusals that the ledger has; of others the cause goes.
        """
        with self._connection as connection:
            ids = [[each] for each in output_ids]
            held = connection.executemany("DELETE FROM held WHERE output_id = ?", ids).rowcount
            connection.executemany("DELETE FROM refusal WHERE source || ':' || record_id = ?", ids)
            connection.executemany("DELETE FROM refusal WHERE record_id = ?", [[each] for each in names])
            rows = connection.execute("SELECT source, record_id, cause FROM refusal").fetchall()
            known = {*kept, *(refusal_key(Refused(*row)) for row in rows)}
            decided = connection.execute("SELECT origin, key FROM decided WHERE verdict = 'refused' AND cause <> ''")
            gone = [list(row) for row in decided.fetchall() if row[1] not in known]
            connection.executemany("UPDATE decided SET cause = '' WHERE origin = ? AND key = ?", gone)
        return max(held, 0)

    def _hold(self, origin: str, parsed: ParsedOutput) -> int:
        output = parsed.output
        row = (output.output_id, origin, output.source, output.record_id, _text(output.produced_at))
        row_content = (output.model_version_id, output.payload_sha256, parsed.payload)
        query = "INSERT OR IGNORE INTO held VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
        return self._connection.execute(query, [*row, *row_content]).rowcount

    def _decide(self, origin: str, key: str, fate: Fate, cause: str, produced_at: datetime | None) -> int:
        query = "INSERT OR IGNORE INTO decided (origin, key, verdict, cause, produced_at) VALUES (?, ?, ?, ?, ?)"
        return self._connection.execute(query, [origin, key, fate, cause, _text(produced_at)]).rowcount

    def _by_key(
        self, query: str, keys: Sequence[str], before: Sequence[str] = (), after: str = ""
    ) -> list[tuple[Any, ...]]:
        found: list[tuple[Any, ...]] = []
        for start in range(0, len(keys), _AT_ONCE):
            some = keys[start : start + _AT_ONCE]
            marks = ", ".join("?" * len(some))
            found += self._connection.execute(f"{query} ({marks}){after}", [*before, *some]).fetchall()
        return found


def refusal_key(refused: Refused) -> str:
    """What tells a refused record from others of its source."""
    return sha256_json([refused.source, refused.record_id, refused.cause])


@contextmanager
def open_spool(path: Path) -> Iterator[Spool]:
    """The spool at `path`, created where there is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(path, timeout=_PATIENCE_SECONDS)) as connection:
        # What is let go of leaves no bytes in the file: it may have to be erased.
        connection.execute("PRAGMA secure_delete = ON")
        connection.executescript(_TABLES)
        _add_files(connection)
        yield Spool(connection)


def _add_files(connection: sqlite3.Connection) -> None:
    """Bring the spool of an earlier release up to date: it knew no files of decisions."""
    with connection:
        connection.execute("BEGIN IMMEDIATE")
        if "file" not in [row[1] for row in connection.execute("PRAGMA table_info(decided)")]:
            connection.execute("ALTER TABLE decided ADD COLUMN file TEXT NOT NULL DEFAULT ''")
        connection.execute(
            "CREATE INDEX IF NOT EXISTS forgettable ON decided (origin, produced_at) "
            "WHERE verdict = 'sampled_out' AND file = ''"
        )


def _text(moment: datetime | None) -> str | None:
    return moment.astimezone(UTC).isoformat(timespec="microseconds") if moment else None
