"""One changed byte, anywhere, is named."""

import shutil
from dataclasses import replace
from pathlib import Path

import lancedb
import pytest

from gradtrail.flows.audit import audit
from gradtrail.flows.index import index
from gradtrail.flows.ingest import ingest
from gradtrail.tasks.govern.verifying import verify_workspace


@pytest.fixture(scope="module")
def audited(prefect_server, tmp_path_factory, migrated_mlflow, tiny_project):
    tiny = tiny_project(tmp_path_factory.mktemp("audited"), migrated_mlflow)
    tiny.register()
    ingest(tiny.workspace, "tiny@champion")
    index(tiny.workspace, "tiny@champion")
    tiny.drop("a.jsonl", tiny.record(1), tiny.record(2))
    audit(tiny.workspace, "tiny@champion")
    assert not verify_workspace(tiny.workspace).problems
    return tiny


@pytest.mark.parametrize(
    ("kind", "pattern"),
    [
        ("ledger", "ledger.duckdb"),
        ("snapshot", "snapshot.duckdb"),
        ("checkpoint", "checkpoints/*.safetensors"),
        ("manifest", "manifests/*.jsonl"),
        ("index", "gradients/index_*.lance/data/*.lance"),
        ("payload", "payloads/*/*"),
        ("report", "reports/*/report.html"),
        ("report", "reports/*/attributions.parquet"),
    ],
)
def test_one_flipped_byte_is_named(audited, kind, pattern):
    file = max((path for path in audited.home.glob(pattern) if path.is_file()), key=lambda path: path.stat().st_size)
    original = file.read_bytes()
    changed = bytearray(original)
    changed[len(changed) // 2] ^= 1
    file.write_bytes(bytes(changed))
    try:
        problems = verify_workspace(audited.workspace).problems
    finally:
        file.write_bytes(original)
    assert problems
    assert kind in f"{problems[0].kind} {problems[0].subject} {problems[0].message}"
    assert not verify_workspace(audited.workspace).problems


@pytest.mark.parametrize("pattern", ["checkpoints/*.safetensors", "payloads/*/*", "reports/*/report.json"])
def test_a_missing_file_is_named(audited, pattern):
    file = next(path for path in audited.home.glob(pattern) if path.is_file())
    kept = Path(shutil.move(file, audited.folder / "kept"))
    problems = verify_workspace(audited.workspace).problems
    shutil.move(kept, file)
    assert len(problems) == 1


def test_an_index_that_was_changed_and_sealed_again_is_named(audited):
    index_id = next(audited.home.glob("gradients/index_*.lance")).stem.removeprefix("index_")
    seals = lancedb.connect(str(audited.home / "gradients")).open_table("seals")
    kept = seals.to_arrow()
    seals.update(where=f"index_id = '{index_id}'", values={"rows_sha256": "0" * 64})
    problems = verify_workspace(audited.workspace).problems
    seals.update(where=f"index_id = '{index_id}'", values={"rows_sha256": kept["rows_sha256"][0].as_py()})
    assert [problem.kind for problem in problems] == ["index"]
    assert "ledger recorded" in problems[0].message


def _named(audited) -> list[str]:
    return [f"{each.kind} {each.subject}: {each.message}" for each in verify_workspace(audited.workspace).problems]


def _audit_run(audited) -> str:
    with audited.workspace.ledger().read() as connection:
        [(run_id,)] = connection.execute("SELECT mlflow_run_id FROM report").fetchall()
    return str(run_id)


@pytest.mark.parametrize("tag", ["gradtrail.audit", "gradtrail.audit_root", "gradtrail.event_hash"])
def test_an_edited_or_removed_tag_of_an_audits_run_is_named(audited, tag):
    client, run_id = audited.workspace.registry().client, _audit_run(audited)
    before = client.get_run(run_id).data.tags[tag]
    client.set_tag(run_id, tag, "otherwise")
    [edited] = _named(audited)
    client.delete_tag(run_id, tag)
    [removed] = _named(audited)
    client.set_tag(run_id, tag, before)
    assert edited.endswith(f"its tag {tag} is not what the ledger recorded")
    assert removed.endswith(f"its tag {tag} is gone")
    assert not _named(audited)


def test_the_newest_audit_that_a_version_names_must_be_one_of_its_own(audited):
    client = audited.workspace.registry().client
    before = client.get_model_version("tiny", "1").tags["gradtrail.latest_audit"]
    client.set_model_version_tag("tiny", "1", "gradtrail.latest_audit", "otherwise")
    named = _named(audited)
    client.set_model_version_tag("tiny", "1", "gradtrail.latest_audit", before)
    assert named == ["mlflow tiny/1 in MLflow: its tag gradtrail.latest_audit names no audit of this version"]


@pytest.mark.parametrize("name", ["report.html", "report.json", "attributions.parquet"])
def test_a_changed_or_deleted_copy_of_a_report_in_mlflow_is_named(audited, name):
    [file] = [each for each in audited.folder.rglob(name) if "reports" not in each.parts]
    content = file.read_bytes()
    file.write_bytes(content + b" ")
    [changed] = _named(audited)
    file.unlink()
    [deleted] = _named(audited)
    file.write_bytes(content)
    assert changed.endswith(f"its copy of {name} was changed")
    assert deleted.endswith(f"its copy of {name} is gone")
    assert not _named(audited)


def test_a_deleted_run_of_an_audit_is_named(audited):
    client, run_id = audited.workspace.registry().client, _audit_run(audited)
    client.delete_run(run_id)
    [named] = _named(audited)
    client.restore_run(run_id)
    assert named.endswith(f"its run {run_id} is gone or was deleted")


def test_an_mlflow_that_cannot_be_asked_is_a_note(audited):
    away = replace(audited.workspace, tracking_uri=f"sqlite:///{audited.folder / 'no such folder' / 'mlflow.db'}")
    verification = verify_workspace(away)
    assert not verification.problems
    assert "MLflow: its database is not there, so that tags and copies are not compared." in verification.notes
    assert not (audited.folder / "no such folder").exists()


def test_a_changed_or_missing_index_of_reports_is_named(audited):
    page = audited.workspace.reports / "index.html"
    content = page.read_bytes()
    page.write_bytes(content + b"<p>more</p>")
    [changed] = _named(audited)
    page.unlink()
    [missing] = _named(audited)
    page.write_bytes(content)
    assert changed.startswith("report reports/index.html: ")
    assert "was changed" in changed
    assert "is gone" in missing


@pytest.mark.parametrize("place", ["reports/more.html", "reports/*/more.html"])
def test_extra_files_among_the_reports_are_named(audited, place):
    [report] = audited.workspace.reports.glob("*/report.html")
    file = report.with_name("more.html") if "*" in place else audited.workspace.reports / "more.html"
    file.write_text("more")
    named = _named(audited)
    file.unlink()
    [problem] = named
    assert problem.startswith("report ")
    assert problem.endswith("/more.html: gradtrail wrote no such file there")
