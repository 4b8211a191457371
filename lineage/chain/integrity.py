"""The digests behind the ledger: of a row, of the rows of an event, of an event.

**Row.** ``sha256(salt ‖ field ‖ field ‖ …)`` over the columns in table order. A field is
``name ":" tag ":" length ":" bytes`` with the length in decimal; a NULL column is left out, so that a column added
later leaves older digests as they are. The bytes by tag: ``s`` UTF-8 text, ``i`` 64-bit signed integer, ``r`` IEEE 754
double, ``t`` microseconds since 1970 UTC as ``i``, ``b`` one byte 0 or 1, ``l`` each item as ``length ":" bytes``,
``m`` each key and value alike, sorted by key. A NULL inside ``l`` or ``m``, which is never recorded, is ``n``, so that
it shows as a change. Numbers are big-endian. Nothing depends on how DuckDB prints a value.

**Rows of one event and table.** The Merkle tree of RFC 6962, section 2.1, over the row digests in key order: a leaf is
``sha256(0x00 ‖ digest)``, a node ``sha256(0x01 ‖ left ‖ right)``.

**Event.** sha256 of the canonical JSON of all its other columns, `previous_hash` among them.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from json.encoder import encode_basestring
from typing import Any, TypeVar

import pyarrow as pa

from gradtrail.digests import sha256_json
from gradtrail.lineage.schema.tables import Table

SALT_BYTES = 16
FIRST_PREVIOUS_HASH = "0" * 64

_SCALARS: Mapping[pa.DataType, tuple[str, Callable[[Any], bytes]]] = {
    pa.string(): ("s", str.encode),
    pa.bool_(): ("b", lambda value: b"\x01" if value else b"\x00"),
    pa.int64(): ("i", struct.Struct(">q").pack),
    pa.float64(): ("r", struct.Struct(">d").pack),
    pa.timestamp("us", tz="UTC"): ("t", struct.Struct(">q").pack),
}


_NUMBERS: Mapping[str, pa.DataType] = {"i": pa.int64(), "r": pa.float64(), "t": pa.int64()}
_Encoded = TypeVar("_Encoded", str, bytes)


def new_salts(count: int) -> list[bytes]:
    """`count` independent random salts."""
    pool = os.urandom(SALT_BYTES * count)
    return [pool[start : start + SALT_BYTES] for start in range(0, len(pool), SALT_BYTES)]


def row_digests(table: Table, rows: pa.Table | pa.RecordBatch, salts: Sequence[bytes]) -> list[bytes]:
    """The digest of each row, in the order given. `rows` has at least the columns of `table`; one salt a row."""
    fields = [_encode_column(field, rows.column(field.name)) for field in table.schema]
    return [hashlib.sha256(b"".join(row)).digest() for row in zip(salts, *fields, strict=True)]


def row_keys(table: Table, rows: pa.Table | pa.RecordBatch) -> list[tuple[Any, ...]]:
    """The key of each row, as a tuple of its key columns."""
    return list(zip(*(rows.column(column).to_pylist() for column in table.key), strict=True))


def key_text(key: Sequence[Any]) -> str:
    """A key as one line of text: a JSON array."""
    return json.dumps(list(key), ensure_ascii=False, separators=(",", ":"))


def row_key_texts(table: Table, rows: pa.Table | pa.RecordBatch) -> list[str]:
    """`key_text` of each row; many times as fast as one by one."""
    parts = []
    for name in table.key:
        column = rows.column(name)
        if pa.types.is_string(column.type) and not column.null_count:
            parts.append(_by_value(column, encode_basestring))
        else:
            parts.append([json.dumps(value, ensure_ascii=False) for value in column.to_pylist()])
    return [f"[{','.join(key)}]" for key in zip(*parts, strict=True)]


class MerkleTree:
    """The RFC 6962 tree over row digests that come one by one; holds one node per level."""

    def __init__(self) -> None:
        self.count = 0
        self._pending: list[tuple[int, bytes]] = []

    def add(self, digest: bytes) -> None:
        """Append one leaf."""
        size, node = 1, hashlib.sha256(b"\x00" + digest).digest()
        while self._pending and self._pending[-1][0] == size:
            node = _node(self._pending.pop()[1], node)
            size *= 2
        self._pending.append((size, node))
        self.count += 1

    def root(self) -> str:
        """The root over all leaves so far, hexadecimal; over none, the sha256 of nothing."""
        if not self._pending:
            return hashlib.sha256(b"").hexdigest()
        *rest, (_, root) = self._pending
        for _, left in reversed(rest):
            root = _node(left, root)
        return root.hex()


def merkle_root(digests: Iterable[bytes]) -> str:
    """Root of the RFC 6962 tree over `digests`, hexadecimal.

    Level by level: neighbours are joined, and one that is left over goes up as it is.
    """
    sha256 = hashlib.sha256
    level = [sha256(b"\x00" + digest).digest() for digest in digests]
    if not level:
        return sha256(b"").hexdigest()
    while len(level) > 1:
        joined = [sha256(b"\x01" + left + right).digest() for left, right in zip(level[::2], level[1::2], strict=False)]
        level = joined + level[len(level) & ~1 :]
    return level[0].hex()


def event_hash(
    *, sequence: int, recorded_at: datetime, kind: str, subject: str, payload: str, previous_hash: str
) -> str:
    """The hash that the next event carries as its `previous_hash`."""
    return sha256_json(
        {
            "sequence": sequence,
            "recorded_at": recorded_at.astimezone(UTC).isoformat(timespec="microseconds"),
            "kind": kind,
            "subject": subject,
            "payload": payload,
            "previous_hash": previous_hash,
        }
    )


def _node(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\x01" + left + right).digest()


def _encode_column(field: pa.Field, column: pa.ChunkedArray | pa.Array) -> list[bytes]:
    tag, encode = _encoding(field.type)
    if tag == "t":
        column = column.cast(field.type).cast(pa.int64())
    prefix = f"{field.name}:{tag}:".encode()
    if tag == "s" and not column.null_count:
        return _by_value(column, lambda value: prefix + _framed(encode(value)))
    if tag in _NUMBERS and not column.null_count:
        numbers = column.cast(_NUMBERS[tag]).to_numpy().astype(f">{'f8' if tag == 'r' else 'i8'}").tobytes()
        prefix += b"8:"
        return [prefix + numbers[start : start + 8] for start in range(0, len(numbers), 8)]
    return [b"" if value is None else prefix + _framed(encode(value)) for value in column.to_pylist()]


def _by_value(column: pa.ChunkedArray | pa.Array, encode: Callable[[str], _Encoded]) -> list[_Encoded]:
    """`encode` of each text of a column without nulls, called once a distinct text."""
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    if isinstance(column, pa.ChunkedArray):
        return [encode(value) for value in column.to_pylist()]
    codes = column.dictionary_encode()
    encoded = [encode(value) for value in codes.dictionary.to_pylist()]
    return [encoded[code] for code in codes.indices.to_numpy().tolist()]


def _encoding(kind: pa.DataType) -> tuple[str, Callable[[Any], bytes]]:
    if pa.types.is_map(kind):
        encode_item = _SCALARS[kind.item_type][1]
        return "m", lambda pairs: b"".join(
            _framed(key.encode()) + _item(encode_item, value) for key, value in sorted(pairs)
        )
    if pa.types.is_list(kind):
        encode_value = _SCALARS[kind.value_type][1]
        return "l", lambda values: b"".join(_item(encode_value, value) for value in values)
    return _SCALARS[kind]


def _item(encode: Callable[[Any], bytes], value: Any) -> bytes:
    return b"n" if value is None else _framed(encode(value))


def _framed(content: bytes) -> bytes:
    return b"%d:%b" % (len(content), content)
