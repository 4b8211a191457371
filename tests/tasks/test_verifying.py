"""One changed byte, anywhere, is named."""

import shutil
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
