"""Reading sources into the spool: what is new comes once, unchanged files stay closed, samples are what they say."""

import json
import os
import sqlite3
import tempfile
import tracemalloc
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import gradtrail
from gradtrail.errors import DataError, NotFoundError, StoreError, UsageError
from gradtrail.nouns import Watermark
from gradtrail.storage.sources.config import SourceConfig, SourceConfigError
from gradtrail.storage.sources.files import FileSource
from gradtrail.storage.sources.inbox import READABLE_REMEDY, InboxFile, read_inbox
from gradtrail.storage.sources.inbox_erasure import remove_records
from gradtrail.storage.sources.intake import Intake
from gradtrail.storage.sources.rows import FileMark
from gradtrail.storage.sources.spool import open_spool
from gradtrail.storage.sources.sql import SqlSource

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
NOBODY = 65534


def record(number, **changes):
    made = {
        "record_id": f"r{number}",
        "model": "digits",
        "version": 3,
        "time": f"2026-02-01T00:{number // 60:02d}:{number % 60:02d}+00:00",
        "prediction": number % 3,
        "confidence": 1 - number / 1000,
    }
    return {key: value for key, value in (made | changes).items() if value is not None}


def lines(*records):
    return "".join(json.dumps(each) + "\n" for each in records)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "inbox").mkdir()
    return tmp_path / "inbox"


@pytest.fixture
def read(tmp_path):
    """Read a source once into one spool; what was taken, in order."""

    def run(config, source=None, *, since=None, most=None, now=NOW):
        source = source or FileSource(config.location, config.fields, config.constants)
        with open_spool(tmp_path / "spool.sqlite") as spool:
            spool.begin(Watermark(config.name, config.kind, None))
            before = {each.output.output_id for each in spool.ready(config.name, ["digits/3"], 10_000)}
            intake = Intake(config, source, spool, now, since, most, lambda _: {})
            list(intake.run())
            held = spool.ready(config.name, ["digits/3"], 10_000)
            run.refused = [each for _, each in spool.refusals(config.name)]
            run.watermark = spool.watermark(config.name)
            run.intake = intake
        return [each.output.record_id for each in held if each.output.output_id not in before]

    return run


def inbox(folder, **options):
    return SourceConfig("inbox", "inbox", location=str(folder), **options)


def test_an_unchanged_file_is_not_read_again_and_a_longer_one_only_from_where_it_ended(folder, read):
    path = folder / "a.jsonl"
    path.write_text(lines(record(1), record(2)))
    assert read(inbox(folder)) == ["r1", "r2"]
    state = path.stat()
    # The same name, size and time: other bytes show that the file was not opened.
    path.write_text(lines(record(3), record(4)))
    assert path.stat().st_size == state.st_size
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert read(inbox(folder)) == []
    # Another time but the same digest as before: not read either.
    path.write_text(lines(record(1), record(2)))
    assert read(inbox(folder)) == []
    with path.open("a") as stream:
        stream.write(lines(record(5)) + "no json\n")
    assert read(inbox(folder)) == ["r5"]
    assert [each.record_id for each in read.refused] == ["row 4"]
    # Rewritten from the beginning: all of it is new to look at, and what is known is not taken twice.
    path.write_text(lines(record(2), record(6), record(1)))
    assert read(inbox(folder)) == ["r6"]
    assert (read.watermark.seen, read.watermark.taken, read.watermark.refused) == (5, 4, 1)


def test_a_line_that_was_half_written_is_read_whole_later(folder, read):
    whole = lines(record(1), record(2))
    (folder / "a.jsonl").write_text(whole[:-20])
    assert read(inbox(folder)) == ["r1"]
    (folder / "a.jsonl").write_text(whole)
    assert read(inbox(folder)) == ["r2"]


@pytest.mark.parametrize("scheme", ["file", "memory"])
def test_files_behind_a_filesystem_address_are_read_the_same_way(scheme, folder, read, tmp_path):
    import fsspec

    location = f"file://{folder}" if scheme == "file" else f"memory://{tmp_path.name}"
    filesystem = fsspec.filesystem(scheme)
    prefix = str(folder) if scheme == "file" else f"/{tmp_path.name}"
    filesystem.makedirs(prefix, exist_ok=True)
    with filesystem.open(f"{prefix}/a.jsonl", "w") as stream:
        stream.write(lines(record(1)) + "broken\n")
    table = pa.Table.from_pylist([record(2), record(3)])
    with filesystem.open(f"{prefix}/b.parquet", "wb") as stream:
        pq.write_table(table, stream)
    config = inbox(location)
    assert read(config) == ["r1", "r2", "r3"]
    assert read(config) == []
    with filesystem.open(f"{prefix}/c.jsonl", "w") as stream:
        stream.write(lines(record(4)))
    assert read(config) == ["r4"]
    assert len(read.refused) == 1


def test_files_in_folders_are_read_by_their_path_and_what_writers_note_is_not(folder, read, tmp_path):
    linked = tmp_path / "elsewhere"
    for number, name in enumerate(
        ["_outputs.jsonl", "a.jsonl", "date=2026-02-01/a.jsonl", "date=2026-02-02/a.jsonl"], start=1
    ):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(lines(record(number)))
    for number, name in enumerate(["_temporary/a.jsonl", ".hidden/a.jsonl", "_SUCCESS", "deep/a.jsonl.tmp"], start=10):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(lines(record(number)))
    linked.mkdir()
    (linked / "a.jsonl").write_text(lines(record(5)))
    (folder / "link").symlink_to(linked)
    assert read(inbox(folder)) == ["r1", "r2", "r3", "r4", "r5"]
    assert read.refused == []
    assert [file.name for file in read_inbox(folder)] == [
        "_outputs.jsonl",
        "a.jsonl",
        "date=2026-02-01/a.jsonl",
        "date=2026-02-02/a.jsonl",
        "link/a.jsonl",
    ]
    (folder / "date=2026-02-01" / "a.jsonl").write_text(lines(record(3), record(6)) + "no json\n")
    assert read(inbox(folder)) == ["r6"]
    assert "date=2026-02-01/a.jsonl, row 3" in read.refused[0].cause
    assert remove_records(inbox(folder), {"inbox:r4", "inbox:r5", "inbox:r6"}).records == 3
    assert not list(folder.glob("date=2026-02-02/*"))
    assert not list(linked.iterdir())
    assert (folder / "date=2026-02-01" / "a.jsonl").read_text() == lines(record(3)) + "no json\n"


def test_an_address_of_no_filesystem_and_a_missing_prefix_are_named(folder, read):
    with pytest.raises(UsageError, match="no filesystem that is known here"):
        FileSource("nowhere://bucket/x", {}, {})
    with pytest.raises(NotFoundError, match="no inbox"):
        read(inbox(f"file://{folder}/absent"))


@pytest.mark.parametrize(("name", "size"), [("a.jsonl", 100_000_000), ("a.parquet", 20_000_000)])
def test_a_record_of_100_megabytes_is_refused_without_being_held_more_than_once(folder, read, name, size):
    path = folder / name
    if name.endswith("jsonl"):
        with path.open("w") as stream:
            stream.write('{"image": "')
            for _ in range(100):
                stream.write("x" * (size // 100))
            stream.write('"}\n' + lines(record(1)))
    else:
        pq.write_table(pa.Table.from_pylist([record(0, image=b"x" * size), record(1, image=b"x")]), path)
    tracemalloc.start()
    try:
        assert read(inbox(folder)) == ["r1"]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 60_000_000
    assert "16 MB" in read.refused[0].cause


def test_other_encodings_are_refused_by_file(folder, read):
    (folder / "utf16.jsonl").write_text(lines(record(1)), encoding="utf-16")
    (folder / "latin.jsonl").write_bytes(
        b"\xef\xbb\xbf" + lines(record(2, label="é")).encode().replace(b"\\u00e9", b"\xe9")
    )
    (folder / "good.jsonl").write_text(lines(record(3)), encoding="utf-8-sig")
    assert read(inbox(folder)) == ["r3"]
    assert [(each.source, "is not UTF-8" in each.cause) for each in read.refused] == [
        ("latin.jsonl", True),
        ("utf16.jsonl", True),
    ]


def test_a_writer_in_the_middle_of_a_character_hides_no_line_before_it(folder, read):
    path = folder / "a.jsonl"
    whole = [json.dumps(record(number, label="\u00e9"), ensure_ascii=False).encode() + b"\n" for number in range(6)]
    (second, end_of_second), (fourth, end_of_fourth) = (
        (line[: line.index(b"\xa9")], line[line.index(b"\xa9") :]) for line in (whole[2], whole[4])
    )
    path.write_bytes(whole[1])

    class Growing(FileSource):
        """A writer adds to the file after the folder is listed, as may happen at any time."""

        def _listed(self):
            found = super()._listed()
            with path.open("ab") as stream:
                stream.write(second)
            return found

    assert read(inbox(folder), Growing(str(folder), {}, {})) == ["r1"]
    assert read.refused == []
    # Found in the middle of a character: the lines before it are taken, and the rest once it is written.
    with path.open("ab") as stream:
        stream.write(end_of_second + whole[3] + fourth)
    assert read(inbox(folder)) == ["r2", "r3"]
    assert [each.record_id for each in read.refused] == ["row 4"]
    with path.open("ab") as stream:
        stream.write(end_of_fourth + whole[5])
    assert read(inbox(folder)) == ["r4", "r5"]


def test_a_file_that_is_not_utf8_is_refused_once_and_read_from_its_beginning_when_it_is(folder, read):
    path = folder / "a.jsonl"
    path.write_bytes(lines(record(1)).encode() + b"\xff\n")
    for _ in range(2):
        assert read(inbox(folder)) == []
        assert [(each.source, "is not UTF-8" in each.cause) for each in read.refused] == [("a.jsonl", True)]
    with path.open("ab") as stream:
        stream.write(lines(record(2)).encode())
    assert read(inbox(folder)) == []
    assert len(read.refused) == 1
    path.write_text(lines(record(1), record(2)))
    assert read(inbox(folder)) == ["r1", "r2"]
    assert (read.watermark.seen, read.watermark.taken, read.watermark.refused) == (3, 2, 1)


def test_a_name_that_cannot_be_written_down_is_refused_with_its_record_or_file_alone(folder, read):
    (folder / "a.jsonl").write_text(lines(record(1, record_id="\ud800"), record(2)))
    odd = Path(os.fsdecode(os.fsencode(folder) + b"/caf\xe9.jsonl"))
    odd.write_text(lines(record(3)))
    (folder / "z.jsonl").write_text(lines(record(4)))
    for _ in range(2):
        assert read(inbox(folder)) in (["r2", "r4"], [])
        assert [(each.source, each.record_id) for each in read.refused] == [
            ("a.jsonl", "row 1"),
            ("caf\\xe9.jsonl", ""),
        ]
    assert "Make it text of 1 to 512 printable characters" in read.refused[0].cause
    assert read.refused[1].cause == "The name of caf\\xe9.jsonl is not UTF-8. Rename it."
    odd.rename(folder / "caf\u00e9.jsonl")
    assert read(inbox(folder)) == ["r3"]
    assert (read.watermark.taken, read.watermark.refused) == (3, 2)


@pytest.fixture
def as_another_user():
    """A context in which this process has the rights of a user who owns nothing; files of mode 0 are closed to it."""

    @contextmanager
    def entered():
        before = os.geteuid()
        if before == 0:
            os.seteuid(NOBODY)
        try:
            yield
        finally:
            os.seteuid(before)

    return entered


def test_a_file_of_another_user_is_named_with_what_to_do_and_read_once_that_is_done(as_another_user):
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        place.chmod(0o755)
        path, more = place / "a.jsonl", place / "b.jsonl"
        path.write_text(lines(record(1)))
        more.write_text(lines(record(2)))
        source = FileSource(name, {}, {})
        arrived = list(source.arrivals(None, {}))
        marks = {each.name: each for each in arrived if isinstance(each, FileMark)}
        assert sorted(marks) == ["a.jsonl", "b.jsonl"]
        for each in (path, more):
            each.write_text(each.read_text() + lines(record(3)))
        path.chmod(0)
        with as_another_user():
            arrived = list(source.arrivals(None, marks))
        closed, taken, mark = arrived
        assert "a.jsonl cannot be read: [Errno 13] Permission denied" in closed.fault.what
        assert closed.fault.remedy == READABLE_REMEDY
        assert (taken.name, mark.name) == ("r3", "b.jsonl")
        path.chmod(0o644)
        with as_another_user():
            assert [each.name for each in source.arrivals(None, marks | {"b.jsonl": mark})] == ["r3", "a.jsonl"]
        (place / "closed").mkdir(mode=0)
        with (
            as_another_user(),
            pytest.raises(StoreError, match=r"cannot be listed.*Run audits as the user"),
        ):
            list(source.arrivals(None, {}))


def test_missing_fields_are_refused_and_extra_ones_kept(folder, read):
    (folder / "a.jsonl").write_text(lines(record(1, model=None), record(2, extra={"a": [1]}), record(3, time="soon")))
    assert read(inbox(folder)) == ["r2"]
    assert [each.record_id for each in read.refused] == ["r1", "r3"]


def test_what_was_made_in_the_future_waits_for_its_time_and_does_not_push_the_watermark_beyond_now(folder, tmp_path):
    soon, late = (NOW + timedelta(minutes=minutes) for minutes in (30, 90))
    (folder / "a.jsonl").write_text(lines(record(1, time=soon.isoformat()), record(2, time=late.isoformat())))
    config = inbox(folder)
    with open_spool(tmp_path / "spool.sqlite") as spool:
        spool.begin(Watermark(config.name, config.kind, None))
        list(Intake(config, FileSource(str(folder), {}, {}), spool, NOW, None, None, lambda _: {}).run())
        assert spool.watermark("inbox").reached == NOW
        assert spool.refusals("inbox") == []

        def ready(minutes):
            held = spool.ready("inbox", ["digits/3"], 10, NOW + timedelta(minutes=minutes))
            return [each.output.record_id for each in held]

        assert (ready(60), ready(89), ready(90)) == (["r1"], ["r1"], ["r1", "r2"])
        assert spool.ahead(NOW + timedelta(minutes=60)) == {("inbox", "digits/3"): (1, late)}
        assert spool.ahead(late) == {}


def test_all_first_random_stratified_and_lowest_confidence_take_what_they_say(folder, read, tmp_path):
    (folder / "a.jsonl").write_text(lines(*(record(number) for number in range(400))))
    taken = {}
    for name, options in {
        "everything": {},
        "few": {"sampling": "first", "sample_size": 3},
        "share": {"sampling": "random", "sample_share": 0.25},
        "other-share": {"sampling": "random", "sample_share": 0.25, "sample_seed": 1},
        "labels": {"sampling": "stratified", "sample_size": 2},
        "unsure": {"sampling": "lowest_confidence", "sample_size": 5},
    }.items():
        config = replace(inbox(folder, **options), name=name)
        taken[name] = read(config)
        assert read.watermark.seen == 400
        assert read.watermark.sampled_out == 400 - len(taken[name]) == read.intake.sampled_out
        assert read(config) == []  # a repeat adds nothing, and what was left out stays out
        assert read.watermark.seen == 400
    assert len(taken["everything"]) == 400
    assert taken["few"] == ["r0", "r1", "r2"]
    # Binomial: 100 ± 3 standard deviations of 8.7.
    assert 74 <= len(taken["share"]) <= 126
    assert taken["share"] != taken["other-share"]
    assert sorted(taken["labels"]) == ["r0", "r1", "r2", "r3", "r4", "r5"]
    assert taken["unsure"] == [f"r{number}" for number in range(395, 400)]


def test_the_random_share_is_the_same_in_every_installation(folder, tmp_path):
    chosen = []
    for place in ("one", "two"):
        with open_spool(tmp_path / place / "spool.sqlite") as spool:
            (folder / "a.jsonl").write_text(lines(*(record(number) for number in range(50))))
            config = inbox(folder, sampling="random", sample_share=0.5)
            spool.begin(Watermark("inbox", "inbox", None))
            list(Intake(config, FileSource(str(folder), {}, {}), spool, NOW, None, None, lambda _: {}).run())
            chosen.append([each.output.output_id for each in spool.ready("inbox", ["digits/3"], 100)])
    assert chosen[0] == chosen[1]
    assert 0 < len(chosen[0]) < 50


def test_records_without_a_confidence_come_last_and_are_counted(folder, read):
    records = [record(0, confidence=None), record(1, confidence="high"), record(2), record(3, confidence=0.9)]
    (folder / "a.jsonl").write_text(lines(*records))
    assert sorted(read(inbox(folder, sampling="lowest_confidence", sample_size=3))) == ["r0", "r2", "r3"]
    assert read.intake.sample.without_confidence == 2


@pytest.fixture
def database(tmp_path):
    """A sqlite table of ten outputs, and a source that reads it."""
    path = tmp_path / "outputs.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE answers (id INTEGER, made_at DATETIME, answer INTEGER, inputs TEXT)")
        rows = [(number, f"2026-02-{number + 1:02d} 06:00:00", number % 3, "[0.5, 1]") for number in range(10)]
        connection.executemany("INSERT INTO answers VALUES (?, ?, ?, ?)", rows)
    config = SourceConfig(
        "answers",
        "sql",
        location=f"sqlite:///{path}",
        table="answers",
        time_column="made_at",
        id_column="id",
        time_zone="UTC",
        json_fields=("inputs",),
        fields={"prediction": "answer"},
        constants={"model": "digits", "version": 3},
    )
    return path, config


def test_a_table_is_read_from_the_watermark_on_in_order_of_time(database, read):
    path, config = database
    assert read(config, SqlSource(config)) == [str(number) for number in range(10)]
    assert read.watermark.reached == datetime(2026, 2, 10, 6, tzinfo=UTC)
    with sqlite3.connect(path) as connection:
        late = "2026-02-09 12:00:00"
        connection.execute("INSERT INTO answers VALUES (20, ?, 1, '[1]')", [late])
        connection.execute("INSERT INTO answers VALUES (21, '2026-02-01 00:00:00', 1, '[1]')")
        connection.execute("INSERT INTO answers VALUES (22, NULL, 1, '[1]')")
        connection.execute("INSERT INTO answers VALUES (23, '2026-02-10 07:00:00', 1, '[1')")
    since = read.watermark.reached - timedelta(hours=24)
    assert read(config, SqlSource(config), since=since) == ["20"]
    assert {each.record_id: each.cause.partition(".")[0] for each in read.refused} == {
        "22": "answers, id 22 has no field 'time'",
        "23": "answers, id 23: the column 'inputs' is not JSON: Expecting ',' delimiter: line 1 column 3 (char 2)",
    }
    assert read(config, SqlSource(config), since=since) == []
    assert read.watermark.refused == 2


def test_a_query_is_bound_and_held_to_the_same_columns(database, read):
    _, config = database
    query = "SELECT id, made_at, answer, inputs FROM answers WHERE made_at >= :since AND answer = 1"
    asked = replace(config, name="asked", table="", query=query)
    assert read(asked, SqlSource(asked)) == ["1", "4", "7"]
    for text, cause in {
        "SELECT * FROM absent WHERE made_at >= :since": "cannot be run: no such table: absent",
        "SELECT id, answer, inputs FROM answers WHERE made_at >= :since": "no column 'made_at'",
    }.items():
        wrong = replace(asked, query=text)
        with pytest.raises(UsageError, match=cause):
            read(wrong, SqlSource(wrong))


def test_a_missing_table_or_column_is_named(database, read):
    _, config = database
    for wrong, cause in (
        (replace(config, table="absent"), "no table absent"),
        (replace(config, time_column="when"), "no column 'when'; it has id, made_at"),
        (replace(config, fields={"prediction": "said"}), "no column 'said'"),
    ):
        with pytest.raises(UsageError, match=cause):
            read(wrong, SqlSource(wrong))


def test_an_address_that_is_none_or_answers_nobody_is_named_without_its_password(database, read, monkeypatch):
    _, config = database
    with pytest.raises(UsageError, match="cannot be used"):
        SqlSource(replace(config, location="nonsense"))
    away = replace(config, location="env:ANSWERS_URL")
    with pytest.raises(UsageError, match="ANSWERS_URL, which is not set"):
        SqlSource(away)
    monkeypatch.setenv("ANSWERS_URL", "postgresql+psycopg://reader:secret@127.0.0.1:1/answers")
    with pytest.raises(StoreError, match="cannot be read") as caught:
        read(away, SqlSource(away))
    assert "secret" not in str(caught.value)
    assert (
        replace(away, location="postgresql://reader:secret@host/x").shown_location() == "postgresql://reader:***@host/x"
    )


@pytest.mark.parametrize(
    ("options", "cause"),
    [
        ({"name": "Big Name", "kind": "inbox"}, "is called"),
        ({"name": "x", "kind": "inbox", "table": "t"}, "of kind inbox has table"),
        ({"name": "x", "kind": "traces", "location": "/x", "experiments": ("e",)}, "of kind traces has location"),
        ({"name": "x", "kind": "traces"}, "has no experiments"),
        ({"name": "x", "kind": "traces", "experiments": ("e",), "fields": {"inputs": "spans.0"}}, "Begin with request"),
        ({"name": "x", "kind": "sql", "table": "t", "time_column": "t"}, "has no location"),
        ({"name": "x", "kind": "sql", "location": "sqlite://", "time_column": "t"}, "needs a table or a query"),
        ({"name": "x", "kind": "sql", "location": "sqlite://", "table": "t"}, "has no time_column"),
        ({"name": "x", "kind": "sql", "location": "sqlite://", "query": "SELECT 1", "time_column": "t"}, ":since"),
        ({"name": "x", "kind": "inbox", "sampling": "first"}, "sample_size = 0"),
        ({"name": "x", "kind": "inbox", "sample_size": 3}, "sample_size = 3"),
        ({"name": "x", "kind": "inbox", "sample_share": 0.5}, "sample_share = 0.5"),
        ({"name": "x", "kind": "inbox", "sampling": "random", "sample_share": 2.0}, "sample_share = 2"),
        ({"name": "x", "kind": "inbox", "most_per_run": -1}, "most_per_run = -1"),
        ({"name": "x", "kind": "inbox", "fields": {"a": "b"}, "constants": {"a": 1}}, "as a field and as a constant"),
    ],
)
def test_values_that_do_not_go_together_are_refused(options, cause):
    with pytest.raises(SourceConfigError, match=cause):
        SourceConfig(**options)


def test_calls_from_many_processes_give_whole_lines_in_files_of_their_own(tmp_path, read):
    first = gradtrail.record_output(model="digits", version=3, prediction=1, inputs=[1.0], home=tmp_path)
    children = []
    for child in range(4):
        if not (process := os.fork()):
            try:
                for number in range(50):
                    made = {"record_id": f"{child}-{number}", "inputs": [0.5] * 500, "time": NOW}
                    gradtrail.record_output(model="digits", version=3, prediction=1, home=tmp_path, **made)
            finally:
                os._exit(0)
        children.append(process)
    taken = []
    while children:
        taken += read(inbox(tmp_path / "inbox"), now=datetime.now(UTC))
        children = [each for each in children if os.waitpid(each, os.WNOHANG) == (0, 0)]
    taken += read(inbox(tmp_path / "inbox"), now=datetime.now(UTC))
    assert read.refused == []
    assert len(taken) == len(set(taken)) == 201
    assert f"inbox:{taken[0]}" == first or first.removeprefix("inbox:") in taken
    files = list((tmp_path / "inbox").iterdir())
    assert len(files) == 5
    assert sum(len(list(InboxFile(path, path.name).rows())) for path in files) == 201


def test_a_call_with_a_field_that_cannot_be_audited_writes_nothing(tmp_path):
    with pytest.raises(DataError, match="Output 1 of this call: the field 'prediction' is nan"):
        gradtrail.record_output(model="digits", version=3, prediction=float("nan"), home=tmp_path)
    with pytest.raises(DataError, match="Output 2 of this call has no field 'prediction'"):
        gradtrail.record_outputs([record(1), record(2, prediction=None)], home=tmp_path)
    assert not (tmp_path / "inbox").exists()
    assert gradtrail.record_outputs([record(1)], home=tmp_path) == ["inbox:r1"]
    assert Path(tmp_path / "inbox").is_dir()
