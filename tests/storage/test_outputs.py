import base64
import json
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from uuid import UUID

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gradtrail.digests import content_sha256, sha256_bytes
from gradtrail.errors import DataError, NotFoundError
from gradtrail.nouns import Watermark
from gradtrail.storage.sources.config import SourceConfig
from gradtrail.storage.sources.files import FileSource
from gradtrail.storage.sources.intake import Intake
from gradtrail.storage.sources.outputs import (
    add_file,
    parse_record,
    payload_record,
    read_records,
    record_payload,
    write_outputs,
)
from gradtrail.storage.sources.spool import open_spool

NOON = "2026-01-31T12:00:00+00:00"


def record(**fields):
    return {"model": "digits", "version": 3, "time": "2026-01-31T12:00:00Z", "prediction": "7"} | fields


def parse(**fields):
    return parse_record(record(**fields), place="day.parquet, row 4")


@pytest.fixture
def inbox(tmp_path):
    folder = tmp_path / "inbox"
    folder.mkdir()
    return folder


@dataclass(frozen=True)
class Collected:
    outputs: list
    refused: list
    payloads: dict


def collect(folder):
    """Everything an inbox holds, read once, as it waits to be recorded."""
    config = SourceConfig("inbox", "inbox")
    with open_spool(Path(":memory:")) as spool:
        spool.begin(Watermark("inbox", "inbox", None))
        source = FileSource(str(folder), {}, {})
        list(Intake(config, source, spool, datetime.now(UTC), None, None, lambda _: {}).run())
        held = spool.ready("inbox", ["digits/3"], 1000)
        refused = [each for _, each in spool.refusals("inbox")]
    return Collected([each.output for each in held], refused, {each.output.output_id: each.payload for each in held})


def write_lines(path, *records):
    path.write_text("".join(json.dumps(each) + "\n" for each in records))
    return path


def test_arrays_bytes_and_times_have_one_canonical_form():
    payload = record_payload(
        {
            "z": np.float32(0.5),
            "pixels": np.arange(4, dtype=np.uint8).reshape(2, 2),
            "png": b"\x89PNG",
            "at": datetime(2026, 1, 31, 13, tzinfo=timezone(timedelta(hours=1))),
            "day": date(2026, 1, 31),
            "nothing": None,
            "nested": {"ok": True, "gone": None, "list": (1, None)},
        }
    )
    assert payload == (
        b'{"at":"2026-01-31T12:00:00+00:00","day":"2026-01-31","nested":{"list":[1,null],"ok":true},'
        b'"pixels":[[0,1],[2,3]],"png":{"$base64":"iVBORw=="},"z":0.5}'
    )
    assert payload_record(payload)["png"] == b"\x89PNG"
    assert record_payload(payload_record(payload)) == payload


def test_names_are_ordered_by_utf16_as_rfc_8785_asks():
    assert record_payload({"\ufb33": 1, "\U0001f600": 2, "a": 3}) == '{"a":3,"\U0001f600":2,"\ufb33":1}'.encode()


@pytest.mark.parametrize(
    ("value", "field"),
    [
        (float("nan"), "x"),
        ([1.0, [2.0, float("inf")]], r"x\[1\]\[1\]"),
        ({"a": np.array([np.nan])}, r"x\.a\[0\]"),
        ({1: 2}, "x"),
        ({1, 2}, "x"),
        ({"$integer": "1.5"}, "x"),
        (Decimal("NaN"), "x"),
        ([Decimal("Infinity")], r"x\[0\]"),
        (Decimal("1E+2000"), "x"),
        ("\ud800", "x"),
        (datetime(2026, 1, 31), "x"),  # no zone, on purpose
        (np.datetime64("2026-01-31"), "x"),
        (pd.NaT, "x"),
        ({"$base64": "no!"}, "x"),
        (json.loads("[" * 500 + "]" * 500), "x"),
    ],
)
def test_a_value_without_a_finite_json_form_is_named_with_its_field(value, field):
    with pytest.raises(DataError, match=f"^here, row 1.*'?{field}"):
        record_payload({"fine": 1, "x": value}, name="here, row 1")


def test_a_record_beyond_16_megabytes_is_refused_with_its_largest_field():
    with pytest.raises(DataError, match=r"'image'; the limit is 16 MB"):
        record_payload({"a": "small", "image": b"\0" * 13_000_000})


@pytest.mark.parametrize("payload", [b"", b"[1]", b"\xff", b"{", b"[" * 100_000])
def test_bytes_that_are_no_record_are_refused(payload):
    with pytest.raises(DataError, match="A payload is"):
        payload_record(payload)


def test_an_output_has_the_id_of_its_source_and_record():
    parsed = parse(source="kiosk", record_id=17, label="1", features=[1.5])
    output = parsed.output
    assert (output.output_id, output.source, output.record_id) == ("kiosk:17", "kiosk", "17")
    assert (output.model_version_id, output.target) == ("digits/3", "emitted")
    assert output.produced_at == datetime(2026, 1, 31, 12, tzinfo=UTC)
    assert output.payload_sha256 == sha256_bytes(parsed.payload) == sha256_bytes(record_payload(parsed.record))
    assert parsed.record["label"] == "1"


def test_without_a_record_id_the_id_is_the_digest_time_included():
    first, again, later = (
        parse(),
        parse(version="3", time="2026-01-31T13:00:00+01:00"),
        parse(time="2026-01-31T12:00:01Z"),
    )
    assert first.output.output_id == f"inbox:{first.output.payload_sha256}"
    assert first == again
    assert first.output.output_id != later.output.output_id


@pytest.mark.parametrize("field", ["model", "version", "time", "prediction"])
@pytest.mark.parametrize("absent", [True, False])
def test_a_lacking_field_is_named_with_file_row_and_remedy(field, absent):
    lacking = record() | {field: None}
    if absent:
        del lacking[field]
    with pytest.raises(DataError, match=rf"day\.parquet, row 4 has no field '{field}'\. Add it: "):
        parse_record(lacking, place="day.parquet, row 4")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model", 3),
        ("model", ""),
        ("model", "a\nb"),
        ("version", 1.5),
        ("version", True),
        ("version", 0),
        ("version", "latest"),
        ("version", float("nan")),
        ("version", float("inf")),
        ("version", "9" * 5000),
        ("time", "2026-01-31 12:00:00"),
        ("time", "yesterday"),
        ("time", 1_700_000_000),
        ("time", "0001-01-01T00:00:00+14:00"),
        ("source", "a:b"),
        ("source", ""),
        ("record_id", ""),
        ("record_id", 1.5),
        ("record_id", "x" * 513),
        ("prediction", float("nan")),
    ],
)
def test_a_field_of_the_wrong_kind_is_named(field, value):
    with pytest.raises(DataError, match=rf"day\.parquet, row 4.*{field}.* \S+"):
        parse(**{field: value})


def test_parquet_and_json_lines_give_the_same_output(inbox):
    fields = record(record_id="a", pixels=[[0.1, 0.2]], label=None, png=b"\x89PNG", time=datetime.fromisoformat(NOON))
    write_outputs(inbox / "one.parquet", [fields])
    del fields["label"]
    encoded = {"$base64": base64.b64encode(b"\x89PNG").decode()}
    write_lines(inbox / "two.jsonl", fields | {"time": "2026-01-31T12:00:00Z", "png": encoded})
    collected = collect(inbox)
    assert [output.output_id for output in collected.outputs] == ["inbox:a"]
    assert collected.refused == []
    stored = payload_record(collected.payloads["inbox:a"])
    assert stored == fields | {"time": NOON}


def test_nanosecond_times_of_pandas_become_microseconds(inbox):
    frame = pd.DataFrame([record(time=pd.Timestamp("2026-01-31T12:00:00.123456789Z"), label=np.nan)])
    frame.to_parquet(inbox / "frame.parquet")
    (output,) = collect(inbox).outputs
    assert output.produced_at == datetime(2026, 1, 31, 12, 0, 0, 123456, tzinfo=UTC)


def test_bad_records_are_quarantined_and_good_ones_beside_them_kept(inbox):
    lines = [
        json.dumps(record(record_id="good")),
        json.dumps(record(record_id="bad", version=None)),
        "{half a li",
        '{"model": "digits", "model": "other"}',
        "[1, 2]",
        "",
        "[" * 100_000,
        json.dumps(record(prediction=float("nan"))),
        json.dumps(record(record_id="last")),
    ]
    (inbox / "day.jsonl").write_text("\ufeff" + "\n".join(lines))
    collected = collect(inbox)
    assert [output.record_id for output in collected.outputs] == ["good", "last"]
    refused = [(each.source, each.record_id) for each in collected.refused]
    assert refused == [("day.jsonl", name) for name in ("bad", "row 3", "row 4", "row 5", "row 7", "row 8")]
    for row, each in zip((2, 3, 4, 5, 7, 8), collected.refused, strict=True):
        assert f"day.jsonl, row {row}" in each.cause
    assert "comes twice" in collected.refused[2].cause


def test_a_line_beyond_16_megabytes_is_refused_without_losing_the_next(inbox):
    with (inbox / "day.jsonl").open("w") as stream:
        stream.write('{"image": "' + "x" * 17_000_000 + '"}\n' + json.dumps(record(record_id="next")))
    collected = collect(inbox)
    assert [output.record_id for output in collected.outputs] == ["next"]
    assert "row 1 is longer than 16 MB" in collected.refused[0].cause


def test_one_id_with_two_contents_is_refused(inbox):
    write_lines(inbox / "a.jsonl", record(record_id="x"), record(record_id="x"))
    write_lines(inbox / "b.jsonl", record(record_id="x", prediction="8"))
    collected = collect(inbox)
    assert [payload_record(payload)["prediction"] for payload in collected.payloads.values()] == ["7"]
    (refused,) = collected.refused
    assert (refused.source, refused.record_id) == ("b.jsonl", "x")
    assert "b.jsonl, row 1: output inbox:x was delivered before with other content" in refused.cause


def test_files_that_hold_no_outputs_are_refused_by_name_and_half_written_ones_ignored(inbox):
    whole = write_outputs(inbox / "z.parquet", [record(record_id=str(i)) for i in range(200)]).read_bytes()
    (inbox / "cut.parquet").write_bytes(whole[: len(whole) // 2])
    (inbox / "text.parquet").write_text("not a table")
    (inbox / "notes.txt").write_text(json.dumps(record()))
    (inbox / "utf16.jsonl").write_text(json.dumps(record()), encoding="utf-16")
    (inbox / "latin.jsonl").write_bytes(json.dumps(record(prediction="é"), ensure_ascii=False).encode("latin-1"))
    (inbox / "folder").mkdir()
    (inbox / ".hidden.jsonl").write_text("{")
    (inbox / "writing.parquet.tmp").write_bytes(whole[:100])
    collected = collect(inbox)
    assert len(collected.outputs) == 200
    assert {each.source for each in collected.refused} == {
        "cut.parquet", "text.parquet", "notes.txt", "utf16.jsonl", "latin.jsonl",
    }  # fmt: skip
    assert all(each.record_id == "" and each.source in each.cause for each in collected.refused)


def test_a_flipped_byte_in_the_pages_of_a_parquet_file_never_changes_an_output_in_silence(inbox):
    path = write_outputs(inbox / "a.parquet", [record(record_id=str(i)) for i in range(100)])
    content = path.read_bytes()
    sound = {output.output_id: output.payload_sha256 for output in collect(inbox).outputs}
    footer_bytes = int.from_bytes(content[-8:-4], "little") + 8
    for position in range(4, len(content) - footer_bytes, 7):
        damaged = bytearray(content)
        damaged[position] ^= 0x55
        path.write_bytes(damaged)
        collected = collect(inbox)
        found = {output.output_id: output.payload_sha256 for output in collected.outputs}
        assert found == sound or collected.refused, f"byte {position}"


def test_a_missing_inbox_is_an_error_and_an_empty_one_is_empty(inbox):
    assert collect(inbox).outputs == []
    with pytest.raises(NotFoundError, match="no inbox"):
        collect(inbox / "elsewhere")


def test_adding_a_file_twice_makes_one_copy(inbox, tmp_path):
    source = write_outputs(tmp_path / "day.parquet", [record(record_id="x")])
    copy = add_file(source, inbox)
    renamed = source.rename(tmp_path / "renamed.parquet")
    assert add_file(renamed, inbox) == copy
    assert [path.name for path in inbox.iterdir()] == [copy.name]
    assert copy.name.endswith("-day.parquet")
    assert copy.read_bytes() == renamed.read_bytes()
    assert len(collect(inbox).outputs) == 1


@pytest.mark.parametrize(
    ("records", "cause"),
    [
        ([record(record_id="x"), record(time=None)], "row 2 has no field 'time'"),
        (
            [record(record_id="x"), record(record_id="x", prediction="8")],
            "row 2: output inbox:x was delivered before with other content",
        ),
    ],
)
def test_a_bad_file_is_not_added(inbox, tmp_path, records, cause):
    with pytest.raises(DataError, match=cause):
        add_file(write_lines(tmp_path / "day.jsonl", *records), inbox)
    assert list(inbox.iterdir()) == []
    with pytest.raises(DataError, match="There is no file"):
        add_file(tmp_path / "nowhere.jsonl", inbox)


def test_read_records_names_the_first_bad_row(tmp_path):
    path = write_lines(tmp_path / "day.jsonl", record(), record(record_id="x"))
    assert [each.get("record_id") for each in read_records(path)] == [None, "x"]
    path.write_text("{}\nnothing\n")
    with pytest.raises(DataError, match=r"day\.jsonl, row 2 is not JSON"):
        read_records(path)


def test_written_outputs_keep_every_field_of_every_record(tmp_path):
    records = [record(pixels=np.eye(2)), record(label="7")]
    write_outputs(tmp_path / "day.parquet", records)
    back = read_records(tmp_path / "day.parquet")
    assert back[0]["pixels"] == [[1.0, 0.0], [0.0, 1.0]]
    assert back[1]["label"] == "7"
    with pytest.raises(DataError, match="the values of 'prediction' are not all of one kind"):
        write_outputs(tmp_path / "other.parquet", [record(), record(prediction=7)])
    assert [path.name for path in tmp_path.iterdir()] == ["day.parquet"]


def test_parquet_types_without_json_form_are_refused_row_by_row(inbox):
    table = pa.Table.from_pylist([record()]).append_column("at", pa.array([datetime(2026, 1, 31)]))
    pq.write_table(table, inbox / "a.parquet")
    (refused,) = collect(inbox).refused
    assert "a.parquet, row 1: the field 'at': 2026-01-31 00:00:00 has no time zone" in refused.cause


OTHER_TYPES = {
    "amount": (pa.array([Decimal("12.50")], pa.decimal128(10, 2)), 12.5),
    "count": (pa.array([Decimal("7")], pa.decimal256(60, 0)), 7),
    "key": (pa.array([2**60 + 1], pa.int64()), 2**60 + 1),
    "large": (pa.array([Decimal(10**30 + 1)], pa.decimal128(38, 0)), 10**30 + 1),
    "lowest": (pa.array([-(2**63)], pa.int64()), -(2**63)),
    "session": (pa.array([UUID(int=5).bytes], pa.uuid()), "00000000-0000-0000-0000-000000000005"),
    "span": (pa.array([timedelta(hours=1, microseconds=-500_000)], pa.duration("us")), "PT3599.5S"),
    "owed": (pa.array([-timedelta(days=1)], pa.duration("ms")), "-PT86400S"),
    "opens": (pa.array([time(8, 30)], pa.time64("us")), "08:30:00"),
    "day": (pa.array([date(2026, 1, 31)], pa.date32()), "2026-01-31"),
    "half": (pa.array([np.float16(0.5)], pa.float16()), 0.5),
    "lines": (
        pa.array(
            [[{"price": Decimal("0.10"), "id": 2**53}]],
            pa.list_(pa.struct([("price", pa.decimal128(5, 2)), ("id", pa.int64())])),
        ),
        [{"price": 0.1, "id": 2**53}],
    ),
    "labels": (pa.array([[("a", Decimal("1.5"))]], pa.map_(pa.string(), pa.decimal128(5, 2))), [["a", 1.5]]),
    "blob": (pa.array([b"\x00"], pa.large_binary()), b"\x00"),
}


@pytest.mark.parametrize("name", OTHER_TYPES)
def test_what_databases_export_to_parquet_is_taken_and_loses_no_digit(inbox, name):
    column, expected = OTHER_TYPES[name]
    pq.write_table(pa.Table.from_pylist([record(record_id="a")]).append_column(name, column), inbox / "a.parquet")
    collected = collect(inbox)
    assert collected.refused == []
    stored = payload_record(collected.payloads["inbox:a"])
    assert stored[name] == expected
    assert type(stored[name]) is type(expected)
    assert record_payload(stored) == collected.payloads["inbox:a"]


def test_ids_and_versions_may_be_decimals_and_ids_uuids():
    parsed = parse_record(record(record_id=Decimal("123"), version=Decimal("1E+1")), place="here")
    assert (parsed.output.record_id, parsed.output.model_version_id) == ("123", "digits/10")
    assert parsed.payload == parse_record(record(record_id="123", version=10), place="here").payload
    assert parse_record(record(record_id=UUID(int=7)), place="here").output.record_id == str(UUID(int=7))
    for changed in ({"version": Decimal("1.5")}, {"record_id": Decimal("1.5")}):
        with pytest.raises(DataError, match=f"here: the field '{next(iter(changed))}' is 1.5"):
            parse_record(record(**changed), place="here")


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("2026-01-31t12:00:00z", "2026-01-31T12:00:00+00:00"),
        ("2026-01-31 12:00:00.5z", "2026-01-31T12:00:00.500000+00:00"),
        ("2016-12-31T23:59:60Z", "2017-01-01T00:00:00+00:00"),
        ("2016-12-31T23:59:60.25z", "2017-01-01T00:00:00.250000+00:00"),
        ("20170101T005960+0100", "2017-01-01T00:00:00+00:00"),
        ("2026-01-31T12:00:00-00:30", "2026-01-31T12:30:00+00:00"),
    ],
)
def test_times_as_rfc_3339_allows_them_are_read(written, meant):
    assert parse(time=written).record["time"] == meant


@pytest.mark.parametrize("written", ["2026-01-31T12:00:61Z", "2026-01-31T12:60:00Z", "2026-01-31T12:00:600Z", "z"])
def test_a_time_that_is_none_is_still_refused(written):
    with pytest.raises(DataError, match="is not a time"):
        parse(time=written)


def test_a_whole_number_beyond_2_to_the_53_is_kept_to_its_last_digit_from_json_too():
    told = {"told": {"$integer": "9007199254740993"}, "small": {"$integer": "5"}}
    payload = record_payload({"token": 9007199254740993, "row": [1, -(10**40)], **told})
    assert b'"token":{"$integer":"9007199254740993"}' in payload
    found = payload_record(payload)
    assert found == {"token": 2**53 + 1, "row": [1, -(10**40)], "told": 2**53 + 1, "small": 5}
    assert record_payload(found) == payload
    assert content_sha256(2**60, 0) != content_sha256(2**60 + 1, 0)
