"""Reports on disk: three files per audit, each there whole or not at all."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from gradtrail.addresses import REPORT_PAGE
from gradtrail.digests import sha256_bytes
from gradtrail.reports.model import AuditReport
from gradtrail.reports.render import attribution_table, json_lines, render_html

HTML_NAME, JSON_NAME, PARQUET_NAME = REPORT_PAGE, "report.json", "attributions.parquet"
_ABANDONED_AFTER_SECONDS = 3600


@dataclass(frozen=True)
class ReportFiles:
    """Where a report lies. `sha256` is the digest of each file by its name."""

    html: Path
    json: Path
    parquet: Path
    sha256: Mapping[str, str]


def write_report(report: AuditReport, directory: Path) -> ReportFiles:
    """Write report.html, report.json and attributions.parquet to `directory`/<audit id>; same report, same bytes.

    All three are rendered before the first is written. Each is written beside its place and renamed into it, so that a
    reader never sees half a file; what a kill leaves behind is a hidden temporary file, which a write an hour later
    removes.

    Raises:
        DataError: a figure that is not finite, or a preview that is not a readable PNG; nothing is written.
    """
    contents = {
        HTML_NAME: render_html(report).encode("utf-8"),
        JSON_NAME: b"".join(line.encode("utf-8") for line in json_lines(report)),
        PARQUET_NAME: _parquet_bytes(report),
    }
    folder = directory / report.audit.audit_id
    folder.mkdir(parents=True, exist_ok=True)
    for leftover in folder.glob(".*.partial"):
        if time.time() - leftover.stat().st_mtime > _ABANDONED_AFTER_SECONDS:
            leftover.unlink(missing_ok=True)
    for name, content in contents.items():
        _replace(folder / name, content)
    return ReportFiles(
        folder / HTML_NAME,
        folder / JSON_NAME,
        folder / PARQUET_NAME,
        {name: sha256_bytes(content) for name, content in contents.items()},
    )


def _parquet_bytes(report: AuditReport) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(attribution_table(report), sink, compression="zstd")
    return bytes(sink.getvalue().to_pybytes())


def _replace(path: Path, content: bytes) -> None:
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".partial")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
