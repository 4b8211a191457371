"""Adding to the ledger within one open transaction: what is new, what contradicts, and the event that commits to it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa

from gradtrail.digests import canonical_json
from gradtrail.errors import DataError
from gradtrail.lineage.chain.integrity import (
    FIRST_PREVIOUS_HASH,
    event_hash,
    key_text,
    merkle_root,
    new_salts,
    row_digests,
    row_key_texts,
    row_keys,
)
from gradtrail.lineage.chain.rows import Rows
from gradtrail.lineage.connections import first_row
from gradtrail.lineage.schema.statements import statement
from gradtrail.lineage.schema.tables import COMMITMENT_SCHEMA

_INCOMING = "incoming"
_LONGEST_SHOWN = 80
# Scores that are computed again elsewhere differ in their last digits; the first ones stay.
_RELATIVE_TOLERANCE = 1e-5
_ABSOLUTE_TOLERANCE = 1e-9


def append(connection: duckdb.DuckDBPyConnection, kind: str, subject: str, rows: Sequence[Rows]) -> None:
    """Insert `rows`, their commitments, and the one event that carries a Merkle root for each table."""
    sequence, previous_hash = _next(connection)
    promised = {}
    for each in rows:
        if each.count:
            digests = _insert(connection, each, sequence)
            promised[each.table.name] = {"count": each.count, "root": merkle_root(digests)}
    recorded_at = datetime.now(UTC)
    payload = canonical_json({"rows": promised}).decode()
    digest = event_hash(
        sequence=sequence,
        recorded_at=recorded_at,
        kind=kind,
        subject=subject,
        payload=payload,
        previous_hash=previous_hash,
    )
    connection.execute(
        "INSERT INTO event VALUES (?, ?, ?, ?, ?, ?, ?)",
        [sequence, recorded_at, kind, subject, payload, previous_hash, digest],
    )


def keep_new(connection: duckdb.DuckDBPyConnection, rows: Rows) -> Rows:
    """The rows whose key is not in the ledger yet.

    Raises:
        DataError: a key is there with other content; names table, key and column.
    """
    table = rows.table
    columns, keys = ", ".join(table.schema.names), ", ".join(table.key)
    connection.register(_INCOMING, rows.data.select(list(table.key)))
    template = "SELECT $columns FROM $table SEMI JOIN incoming USING ($keys) ORDER BY $keys"
    recorded = _fetch(connection, rows, statement(template, columns=columns, table=table.name, keys=keys))
    connection.unregister(_INCOMING)
    if not recorded.num_rows:
        return rows
    known = set(row_keys(table, recorded))
    is_known = pa.array([key in known for key in row_keys(table, rows.data)])
    _require_equal(Rows(table, recorded), Rows(table, rows.data.filter(is_known)))
    return Rows(table, rows.data.filter(pa.array([not each for each in is_known.to_pylist()], pa.bool_())))


def require_same(connection: duckdb.DuckDBPyConnection, rows: Rows, column: str, value: str) -> None:
    """Compare `rows` with all that the ledger has where `column` is `value`.

    Raises:
        DataError: a row is missing on either side or differs; names table, key and column.
    """
    table = rows.table
    names, keys = ", ".join(table.schema.names), ", ".join(table.key)
    template = "SELECT $names FROM $table WHERE $column = ? ORDER BY $keys"
    query = statement(template, names=names, table=table.name, column=column, keys=keys)
    recorded = Rows(table, _fetch(connection, rows, query, [value]))
    before, now = row_keys(table, recorded.data), row_keys(table, rows.data)
    if before != now:
        key = min(set(before) ^ set(now))
        where = "is in the ledger but not among them" if key in set(before) else "is among them but not in the ledger"
        raise DataError(
            f"{column} {value} is recorded already with other rows in {table.name}: {key_text(key)} {where}.",
            "Nothing is ever changed in the ledger: what differs needs an id of its own.",
        )
    _require_equal(recorded, rows)


def is_recorded(connection: duckdb.DuckDBPyConnection, table: str, column: str, value: str) -> bool:
    """Whether a row with this value exists."""
    query = statement("SELECT 1 FROM $table WHERE $column = ? LIMIT 1", table=table, column=column)
    return first_row(connection, query, [value]) is not None


def unrecorded(connection: duckdb.DuckDBPyConnection, table: str, column: str, values: Sequence[str]) -> list[str]:
    """Those of `values` that no row has, in sorted order."""
    if not values:
        return []
    template = "SELECT given FROM (SELECT unnest(?) AS given) ANTI JOIN $table ON $column = given ORDER BY given"
    query = statement(template, table=table, column=column)
    return [row[0] for row in connection.execute(query, [sorted(set(values))]).fetchall()]


def head(connection: duckdb.DuckDBPyConnection) -> tuple[int, str]:
    """Sequence and hash of the last event; 0 and 64 zeros when there is none."""
    row = first_row(connection, "SELECT sequence, event_hash FROM event ORDER BY sequence DESC LIMIT 1")
    return (int(row[0]), str(row[1])) if row else (0, FIRST_PREVIOUS_HASH)


def _next(connection: duckdb.DuckDBPyConnection) -> tuple[int, str]:
    sequence, event_digest = head(connection)
    return sequence + 1, event_digest


def _insert(connection: duckdb.DuckDBPyConnection, rows: Rows, sequence: int) -> list[bytes]:
    table, count = rows.table, rows.count
    salts = new_salts(count)
    digests = row_digests(table, rows.data, salts)
    sequences = pa.array([sequence] * count, pa.int64())
    _bulk(
        connection,
        table.name,
        rows.data.append_column("event_sequence", sequences).append_column("salt", pa.array(salts, pa.binary())),
    )
    commitments = [
        sequences,
        pa.array([table.name] * count, pa.string()),
        pa.array(range(count), pa.int64()),
        pa.array(row_key_texts(table, rows.data), pa.string()),
        pa.array(digests, pa.binary()),
    ]
    _bulk(connection, "row_commitment", pa.table(commitments, schema=COMMITMENT_SCHEMA))
    return digests


def _bulk(connection: duckdb.DuckDBPyConnection, name: str, data: pa.Table) -> None:
    connection.register(_INCOMING, data)
    connection.execute(statement("INSERT INTO $table BY NAME SELECT * FROM incoming", table=name))
    connection.unregister(_INCOMING)


def _fetch(connection: duckdb.DuckDBPyConnection, rows: Rows, query: str, parameters: Sequence[Any] = ()) -> pa.Table:
    return connection.sql(query, params=list(parameters)).to_arrow_table().cast(rows.table.schema)


def _require_equal(recorded: Rows, given: Rows) -> None:
    table = recorded.table
    for field in table.schema:
        before, now = recorded.data.column(field.name), given.data.column(field.name)
        if field.name in table.labels or before.combine_chunks().equals(now.combine_chunks()):
            continue
        for position, (old, new) in enumerate(zip(before.to_pylist(), now.to_pylist(), strict=True)):
            if old != new and not _close(old, new):
                key = row_keys(table, recorded.data.slice(position, 1))[0]
                raise DataError(
                    f"{table.name} {key_text(key)} is recorded already with {field.name} {_shown(old)}, "
                    f"and was given again with {_shown(new)}.",
                    "Nothing is ever changed in the ledger: what differs needs an id of its own.",
                )


def _close(old: Any, new: Any) -> bool:
    return (
        isinstance(old, float)
        and isinstance(new, float)
        and bool(np.isclose(old, new, rtol=_RELATIVE_TOLERANCE, atol=_ABSOLUTE_TOLERANCE))
    )


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _LONGEST_SHOWN else text[:_LONGEST_SHOWN] + "…"
