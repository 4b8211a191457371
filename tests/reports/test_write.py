from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from gradtrail.digests import sha256_file
from gradtrail.errors import DataError
from gradtrail.nouns import Preview
from gradtrail.reports.model import AuditReport
from gradtrail.reports.render import ATTRIBUTION_SCHEMA, attribution_table, render_html, report_json
from gradtrail.reports.write import write_report
from gradtrail.settings import Settings
from gradtrail.tasks.report.history import wrong_outputs

NAMES = {"report.html", "report.json", "attributions.parquet"}


def test_the_three_files_hold_what_was_rendered(sample_report: AuditReport, tmp_path: Path) -> None:
    files = write_report(sample_report, tmp_path)
    assert files.html.parent == tmp_path / sample_report.audit.audit_id
    assert files.html.read_text(encoding="utf-8") == render_html(sample_report)
    assert json.loads(files.json.read_text(encoding="utf-8")) == report_json(sample_report)
    table = pq.read_table(files.parquet)
    assert table.equals(attribution_table(sample_report))
    assert table.schema.equals(ATTRIBUTION_SCHEMA)
    assert table.schema.metadata == attribution_table(sample_report).schema.metadata


def test_the_document_has_a_line_for_each_part_and_each_output(sample_report: AuditReport, tmp_path: Path) -> None:
    lines = write_report(sample_report, tmp_path).json.read_text(encoding="utf-8").splitlines()
    document = report_json(sample_report)
    assert len(lines) == len(document) + len(document["outputs"]) + 3
    assert [json.loads(line.removesuffix(",")) for line in lines if line.startswith('{"output"')] == document["outputs"]
    bare = write_report(replace(sample_report, outputs=()), tmp_path / "bare").json.read_bytes()
    assert json.loads(bare)["outputs"] == []


def test_the_digests_are_those_of_the_files(sample_report: AuditReport, tmp_path: Path) -> None:
    files = write_report(sample_report, tmp_path)
    assert set(files.sha256) == NAMES
    for path in (files.html, files.json, files.parquet):
        assert files.sha256[path.name] == sha256_file(path)


def test_writing_again_gives_the_same_bytes_and_nothing_else(sample_report: AuditReport, tmp_path: Path) -> None:
    first = write_report(sample_report, tmp_path)
    second = write_report(sample_report, tmp_path)
    elsewhere = write_report(sample_report, tmp_path / "deep" / "elsewhere")
    assert first == second
    assert first.sha256 == elsewhere.sha256
    assert {path.name for path in first.html.parent.iterdir()} == NAMES


def test_files_can_be_read_by_others(sample_report: AuditReport, tmp_path: Path) -> None:
    assert write_report(sample_report, tmp_path).html.stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("figure", [float("nan"), float("inf")])
def test_a_figure_that_is_not_finite_is_refused_before_anything_is_written(
    sample_report: AuditReport, tmp_path: Path, figure: float
) -> None:
    section = sample_report.outputs[0]
    broken = replace(sample_report, outputs=(replace(section, result=replace(section.result, loss=figure)),))
    with pytest.raises(DataError, match=broken.audit.audit_id):
        write_report(broken, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_preview_leaves_the_former_report_as_it_was(sample_report: AuditReport, tmp_path: Path) -> None:
    files = write_report(sample_report, tmp_path)
    section = replace(sample_report.outputs[0], preview=Preview("image", png=b"no picture"))
    with pytest.raises(DataError):
        write_report(replace(sample_report, outputs=(section,)), tmp_path)
    assert sha256_file(files.html) == files.sha256["report.html"]
    assert {path.name for path in files.html.parent.iterdir()} == NAMES


KILLED_BEFORE_RENAME = """
import os, signal, sys
from pathlib import Path
from gradtrail.reports import write
real = Path.replace
def killed_at_third(self, target):
    if target.name == "attributions.parquet":
        os.kill(os.getpid(), signal.SIGKILL)
    return real(self, target)
Path.replace = killed_at_third
import pickle
write.write_report(pickle.load(open(sys.argv[1], "rb")), Path(sys.argv[2]))
"""


def test_a_kill_leaves_whole_files_and_the_next_write_completes_them(
    sample_report: AuditReport, tmp_path: Path
) -> None:
    import pickle

    stored, reports = tmp_path / "report.pickle", tmp_path / "reports"
    stored.write_bytes(pickle.dumps(sample_report))
    killed = subprocess.run(
        [sys.executable, "-c", KILLED_BEFORE_RENAME, str(stored), str(reports)], check=False, timeout=120
    )
    assert killed.returncode == -signal.SIGKILL
    folder = reports / sample_report.audit.audit_id
    seen = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
    assert seen == {"report.html", "report.json"}
    assert (folder / "report.html").read_text(encoding="utf-8") == render_html(sample_report)
    leftover = next(path for path in folder.iterdir() if path.name.startswith("."))
    an_hour_ago = time.time() - 3700
    os.utime(leftover, (an_hour_ago, an_hour_ago))
    files = write_report(sample_report, reports)
    assert {path.name for path in folder.iterdir()} == NAMES
    assert sha256_file(files.parquet) == files.sha256["attributions.parquet"]


def test_how_many_outputs_are_wrong_is_read_from_the_table_and_unknown_where_it_is_damaged(
    sample_report: AuditReport, tmp_path: Path
) -> None:
    workspace, audit_id = Settings(home=tmp_path).workspace(), sample_report.audit.audit_id
    assert wrong_outputs(workspace, audit_id) is None
    files = write_report(sample_report, workspace.reports)
    assert wrong_outputs(workspace, audit_id) == sum(section.wrong for section in sample_report.outputs) > 0
    files.parquet.write_bytes(files.parquet.read_bytes()[:100])
    assert wrong_outputs(workspace, audit_id) is None
    unlabelled = tuple(replace(section, true_label=None) for section in sample_report.outputs)
    write_report(replace(sample_report, outputs=unlabelled), workspace.reports)
    assert wrong_outputs(workspace, audit_id) is None
