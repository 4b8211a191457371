from __future__ import annotations

import hashlib
import struct
from datetime import UTC, datetime, timedelta, timezone

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradtrail.lineage.chain.integrity import event_hash, key_text, merkle_root, new_salts, row_digests, row_key_texts
from gradtrail.lineage.schema.tables import TABLES, Table


def _sha(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()


def _rfc_6962(leaves: list[bytes]) -> bytes:
    """Section 2.1, word for word."""
    if not leaves:
        return _sha(b"")
    if len(leaves) == 1:
        return _sha(b"\x00" + leaves[0])
    split = 1
    while split * 2 < len(leaves):
        split *= 2
    return _sha(b"\x01" + _rfc_6962(leaves[:split]) + _rfc_6962(leaves[split:]))


@given(st.lists(st.binary(max_size=40), max_size=70))
def test_the_streamed_merkle_root_is_that_of_rfc_6962(leaves: list[bytes]) -> None:
    assert merkle_root(leaves) == _rfc_6962(leaves).hex()


def test_a_row_digest_is_what_the_documentation_says() -> None:
    rows = pa.table(
        {"audit_id": ["a"], "side": ["opponent"], "example_id": ["é"], "rank": [-2], "share": [0.5]},
        schema=TABLES["example_influence"].schema,
    )
    expected = _sha(
        b"salt-of-16-bytes"
        b"audit_id:s:1:a"
        b"side:s:8:opponent"
        b"example_id:s:2:\xc3\xa9"
        b"rank:i:8:\xff\xff\xff\xff\xff\xff\xff\xfe"
        b"share:r:8:\x3f\xe0\x00\x00\x00\x00\x00\x00"
    )
    assert row_digests(TABLES["example_influence"], rows, [b"salt-of-16-bytes"]) == [expected]


# The bytes of each kind of column, spelt out. Changing any of these makes every ledger that exists look tampered with.
SPELT_OUT = {
    "a time, in another zone": (
        pa.timestamp("us", tz="UTC"),
        datetime(1970, 1, 1, 1, 0, 0, 258, tzinfo=timezone(timedelta(hours=1))),
        b"t:8:\0\0\0\0\0\0\x01\x02",
    ),
    "a time before 1970": (
        pa.timestamp("us", tz="UTC"),
        datetime(1969, 12, 31, 23, 59, 59, 999999, tzinfo=UTC),
        b"t:8:" + b"\xff" * 8,
    ),
    "true": (pa.bool_(), True, b"b:1:\x01"),
    "false": (pa.bool_(), False, b"b:1:\x00"),
    "negative zero": (pa.float64(), -0.0, b"r:8:\x80\0\0\0\0\0\0\0"),
    "a list": (pa.list_(pa.string()), ["x", "", "yz"], b"l:9:1:x0:2:yz"),
    "an empty list": (pa.list_(pa.string()), [], b"l:0:"),
    "a map, sorted": (pa.map_(pa.string(), pa.string()), [("b", "2"), ("a", "")], b"m:11:1:a0:1:b1:2"),
    "a map of numbers": (
        pa.map_(pa.string(), pa.float64()),
        [("g", 1.5)],
        b"m:13:1:g8:\x3f\xf8\0\0\0\0\0\0",
    ),
}


@pytest.mark.parametrize("name", SPELT_OUT)
def test_each_kind_of_column_has_the_documented_bytes(name: str) -> None:
    kind, value, expected = SPELT_OUT[name]
    table = Table("t", pa.schema([("column", kind)]), ("column",))
    rows = pa.table({"column": pa.array([value], kind)})
    assert row_digests(table, rows, [b"salt"]) == [_sha(b"saltcolumn:" + expected)]


def test_an_absent_value_leaves_the_digest_as_if_the_column_did_not_exist() -> None:
    text = pa.string()
    older = Table("t", pa.schema([("key", text)]), ("key",))
    newer = Table("t", pa.schema([("key", text), ("added", text)]), ("key",))
    salts = new_salts(1)
    before = row_digests(older, pa.table({"key": ["k"]}), salts)
    assert row_digests(newer, pa.table({"key": ["k"], "added": pa.array([None], text)}), salts) == before
    assert row_digests(newer, pa.table({"key": ["k"], "added": [""]}), salts) != before


@given(st.lists(st.tuples(st.text(), st.text()), min_size=2, max_size=2, unique=True))
def test_no_two_rows_share_a_digest_by_moving_text_between_columns(pairs: list[tuple[str, str]]) -> None:
    table = Table("t", pa.schema([("left", pa.string()), ("right", pa.string())]), ("left",))
    rows = pa.table({"left": [pair[0] for pair in pairs], "right": [pair[1] for pair in pairs]})
    first, second = row_digests(table, rows, [b"s" * 16, b"s" * 16])
    assert first != second


def test_the_same_row_under_another_salt_has_another_digest() -> None:
    rows = pa.table({"audit_id": ["a"] * 2, "position": [0] * 2, "index_id": ["i"] * 2})
    first, second = row_digests(TABLES["audit_index"], rows, new_salts(2))
    assert first != second


def test_an_event_hash_does_not_depend_on_the_time_zone_it_is_read_in() -> None:
    moment = datetime(2026, 1, 1, 12, 0, tzinfo=UTC)
    rest = {"sequence": 1, "kind": "k", "subject": "s", "payload": "{}", "previous_hash": "0" * 64}
    elsewhere = moment.astimezone(timezone(timedelta(hours=5)))
    assert event_hash(recorded_at=moment, **rest) == event_hash(recorded_at=elsewhere, **rest)
    assert event_hash(recorded_at=moment + timedelta(microseconds=1), **rest) != event_hash(recorded_at=moment, **rest)


_TEXT = st.text(max_size=6)
_WHOLE = st.integers(-(2**63), 2**63 - 1)
_REAL = st.floats(allow_nan=False, allow_infinity=False)
_ROW = st.tuples(_TEXT, _WHOLE, _REAL, st.one_of(st.none(), _TEXT), st.one_of(st.none(), _REAL))


@given(rows=st.lists(_ROW, max_size=30), cut=st.integers(0, 30))
def test_whole_columns_are_digested_to_the_bytes_of_single_rows(rows: list[tuple], cut: int) -> None:
    kinds = [pa.string(), pa.int64(), pa.float64(), pa.string(), pa.float64()]
    schema = pa.schema([(name, kind) for name, kind in zip("abcde", kinds, strict=True)])
    table = Table("t", schema, ("a", "b"))
    pieces = [pa.Table.from_pylist([dict(zip("abcde", row, strict=True)) for row in part], schema)
              for part in (rows[:cut], rows[cut:])]  # fmt: skip
    salts = new_salts(len(rows))
    expected = [
        _sha(
            salt
            + b"a:s:%d:%b" % (len(a.encode()), a.encode())
            + b"b:i:8:" + struct.pack(">q", b)
            + b"c:r:8:" + struct.pack(">d", c)
            + (b"" if d is None else b"d:s:%d:%b" % (len(d.encode()), d.encode()))
            + (b"" if e is None else b"e:r:8:" + struct.pack(">d", e))
        )
        for salt, (a, b, c, d, e) in zip(salts, rows, strict=True)
    ]  # fmt: skip
    assert row_digests(table, pa.concat_tables(pieces), salts) == expected
    assert row_key_texts(table, pa.concat_tables(pieces)) == [key_text(row[:2]) for row in rows]
