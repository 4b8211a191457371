"""An object-store prefix as a source, through pyarrow's real S3 client over HTTP, to a store of a few objects here."""

import json
import threading
from datetime import UTC, datetime
from email.utils import formatdate
from hashlib import md5
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gradtrail.errors import StoreError
from gradtrail.nouns import Watermark
from gradtrail.storage.sources.config import SourceConfig
from gradtrail.storage.sources.files import FileSource
from gradtrail.storage.sources.intake import Intake
from gradtrail.storage.sources.spool import open_spool

BUCKET, NOW = "predictions", datetime(2026, 3, 1, 12, tzinfo=UTC)


class Store(BaseHTTPRequestHandler):
    """What S3 answers to a list of a prefix, and to the head and to a range of an object."""

    protocol_version = "HTTP/1.1"
    objects: dict[str, bytes]
    reads: list[str]
    forbidden = False

    def do_GET(self):
        address = urlsplit(self.path)
        key, query = unquote(address.path).removeprefix(f"/{BUCKET}").lstrip("/"), parse_qs(address.query)
        if self.forbidden:
            return self._answer(403, b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>")
        if not key:
            return self._answer(200, self._listed(**{name: value[0] for name, value in query.items()}))
        if key not in self.objects:
            return self._answer(404, b"<Error><Code>NoSuchKey</Code></Error>" if self.command == "GET" else b"")
        content, asked = self.objects[key], self.headers.get("Range")
        if self.command == "GET":
            self.reads.append(key)
        if not asked:
            return self._answer(200, content)
        first, _, last = asked.removeprefix("bytes=").partition("-")
        piece = content[int(first) : int(last) + 1]
        return self._answer(206, piece, {"Content-Range": f"bytes {first}-{last}/{len(content)}"})

    def do_HEAD(self):
        self.do_GET()

    def _listed(self, prefix="", delimiter="", **_others):
        below = [key for key in sorted(self.objects) if key.startswith(prefix)]
        if delimiter:
            below = [key for key in below if delimiter not in key.removeprefix(prefix)]
        found = "".join(
            f"<Contents><Key>{escape(key)}</Key><LastModified>2026-02-01T00:00:00.000Z</LastModified>"
            f'<ETag>"{md5(self.objects[key], usedforsecurity=False).hexdigest()}"</ETag>'
            f"<Size>{len(self.objects[key])}</Size></Contents>"
            for key in below
        )
        return (
            '<?xml version="1.0"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
            f"<Name>{BUCKET}</Name><Prefix>{escape(prefix)}</Prefix><IsTruncated>false</IsTruncated>{found}"
            "</ListBucketResult>"
        ).encode()

    def _answer(self, status, body, headers=None):
        self.send_response(status)
        sent = {"Content-Length": str(len(body)), "Last-Modified": formatdate(0, usegmt=True), **(headers or {})}
        for name, value in sent.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_arguments):
        """Print nothing."""


@pytest.fixture
def store(monkeypatch):
    handler = type("OneStore", (Store,), {"objects": {}, "reads": []})
    for name, value in {"ACCESS_KEY_ID": "key", "SECRET_ACCESS_KEY": "secret", "EC2_METADATA_DISABLED": "true"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        handler.location = (
            f"s3://{BUCKET}/digits?scheme=http&region=eu-west-1&endpoint_override=127.0.0.1:{server.server_port}"
        )
        yield handler
        server.shutdown()


def record(number):
    time = f"2026-02-01T00:00:{number:02d}+00:00"
    return {"record_id": f"r{number}", "model": "digits", "version": 3, "time": time, "prediction": number}


def lines(*numbers):
    return "".join(json.dumps(record(number)) + "\n" for number in numbers).encode()


def read(store, tmp_path):
    config = SourceConfig("bucket", "inbox", location=store.location)
    with open_spool(tmp_path / "spool.sqlite") as spool:
        spool.begin(Watermark("bucket", "inbox", None))
        before = {each.output.output_id for each in spool.ready("bucket", ["digits/3"], 100)}
        list(Intake(config, FileSource(store.location, {}, {}), spool, NOW, None, None, lambda _: {}).run())
        held = spool.ready("bucket", ["digits/3"], 100)
    return [each.output.output_id for each in held if each.output.output_id not in before]


def test_objects_below_a_prefix_are_read_once_each(store, tmp_path):
    table = BytesIO()
    pq.write_table(pa.Table.from_pylist([record(3)]), table)
    store.objects |= {
        "digits/a.jsonl": lines(1, 2),
        "digits/b.parquet": table.getvalue(),
        "digits/c.jsonl.tmp": lines(9),
        "digits/date=2026-02-01/part-0.jsonl": lines(5),
        "digits/_temporary/part-0.jsonl": lines(5),
        "letters/a.jsonl": lines(8),
    }
    assert read(store, tmp_path) == ["bucket:r1", "bucket:r2", "bucket:r3", "bucket:r5"]
    assert set(store.reads) == {"digits/a.jsonl", "digits/b.parquet", "digits/date=2026-02-01/part-0.jsonl"}
    store.reads.clear()
    assert read(store, tmp_path) == []
    assert store.reads == []
    store.objects["digits/d.jsonl"] = lines(4)
    assert read(store, tmp_path) == ["bucket:r4"]
    assert set(store.reads) == {"digits/d.jsonl"}


def test_a_store_that_refuses_is_named_with_the_remedy(store, tmp_path):
    store.objects["digits/a.jsonl"] = lines(1)
    store.forbidden = True
    with pytest.raises(StoreError, match=r"cannot be listed.*Check address and credentials"):
        read(store, tmp_path)
