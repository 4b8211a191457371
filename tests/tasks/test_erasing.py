"""What is erased leaves no byte in anything gradtrail keeps, and everything still verifies."""

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gradtrail.errors import NotFoundError, StoreError
from gradtrail.flows.audit import audit
from gradtrail.flows.index import index
from gradtrail.flows.ingest import ingest
from gradtrail.lineage.chain.proof_check import check_proof, report_evidence
from gradtrail.lineage.chain.proofs import inclusion_proof
from gradtrail.lineage.erasure import erasures
from gradtrail.lineage.erasure.plan import ErasureRequest
from gradtrail.lineage.events.withdrawals import WithdrawalRequest
from gradtrail.lineage.read import queries
from gradtrail.lineage.verify.signatures import new_keys
from gradtrail.storage.files.exclusive import holding
from gradtrail.tasks.erasing import retain_payloads
from gradtrail.tasks.govern.erasing import erase_data, preview_erasure
from gradtrail.tasks.govern.verifying import verify_workspace
from gradtrail.tasks.govern.withdrawing import withdraw_data
from gradtrail.tasks.report.writing import ensure_report

PERSONAL = frozenset({"author"})


@pytest.fixture(scope="module")
def kept(prefect_server, tmp_path_factory, migrated_mlflow, tiny_project):
    """A project with authors, audited once; copy it, never change it."""
    tiny = tiny_project(tmp_path_factory.mktemp("kept"), migrated_mlflow)
    for number, row in enumerate(tiny.rows):
        row["attributes"]["author"] = f"Jane Secret {number % 7}"
    tiny.write()
    tiny.workspace = replace(tiny.workspace, personal_attributes=("author",))
    tiny.register()
    ingest(tiny.workspace, "tiny@champion")
    index(tiny.workspace, "tiny@champion")
    tiny.drop("a.jsonl", *(tiny.record(number, note=f"secret note {number}") for number in (1, 2, 3)))
    tiny.report = audit(tiny.workspace, "tiny@champion").report
    return tiny


@pytest.fixture
def audited(kept):
    """The project, put back as it was after each test: paths are recorded, so a copy elsewhere would not do."""
    backup = kept.folder / "backup"
    shutil.copytree(kept.home, backup)
    yield kept
    for entry in kept.home.iterdir():
        if entry.is_dir():
            shutil.rmtree(entry)
        elif not entry.name.startswith("mlflow.db"):
            entry.unlink()
    shutil.copytree(backup, kept.home, dirs_exist_ok=True, ignore=shutil.ignore_patterns("mlflow.db*"))
    # MLflow keeps its connections: its database is filled again in place, and not replaced under them.
    with (
        closing(sqlite3.connect(backup / "mlflow.db")) as before,
        closing(sqlite3.connect(kept.home / "mlflow.db")) as now,
    ):
        before.backup(now)
    shutil.rmtree(backup)


def _files_with(home, text):
    """Files under gradtrail's own folders that hold a text; MLflow's are the user's."""
    own = [path for path in home.rglob("*") if path.is_file() and "artifacts" not in path.relative_to(home).parts]
    return sorted(
        str(path.relative_to(home)) for path in own if "mlflow" not in path.name and text.encode() in path.read_bytes()
    )


def test_personal_attributes_go_into_one_table_and_the_manifest_only(audited):
    assert not verify_workspace(audited.workspace).problems
    holding = _files_with(audited.home, "Jane Secret 3")
    assert [name.split("/")[0] for name in holding] == ["ledger.duckdb", "manifests", "snapshot.duckdb"]
    with audited.workspace.ledger().read() as connection:
        assert connection.execute("SELECT count(*) FROM personal_attribute").fetchall() == [(40,)]
        assert connection.execute("SELECT count(*) FROM share WHERE attribute = 'author'").fetchall() == [(0,)]


def test_a_signed_report_checks_a_proof_and_demands_its_key(audited):
    private, public = new_keys(audited.folder / "key.pem")
    other = new_keys(audited.folder / "other.pem")[1]
    workspace = replace(audited.workspace, signing_key=str(private))
    audited.drop("b.jsonl", audited.record(4))
    outcome = audit(workspace, "tiny@champion")
    folder = workspace.reports / outcome.audit_id
    with workspace.ledger().read() as connection:
        proof = json.loads(json.dumps(inclusion_proof(connection, "inbox:out-4")))
        recorded = queries.report_of(connection, outcome.audit_id)
    for name in ("report.html", "report.json"):
        assert check_proof(proof, report_evidence(folder / name)).audit_id == outcome.audit_id
    tags = workspace.registry().client.get_run(recorded.mlflow_run_id).data.tags
    printed = json.loads((folder / "report.json").read_text())["evidence"]
    assert tags["gradtrail.audit_root"] == printed["audit_root"] == proof["audit_root"]
    assert tags["gradtrail.signature"] == printed["signature"]["signature"]
    unsigned, *rest = verify_workspace(workspace, public).problems
    assert (unsigned.kind, rest) == ("signature_missing", [])
    kinds = {problem.kind for problem in verify_workspace(workspace, other).problems}
    assert kinds == {"signature_missing", "signature_bad"}
    assert not verify_workspace(workspace).problems


def test_an_audit_after_a_withdrawal_flags_what_was_withdrawn(audited):
    outcome = withdraw_data(audited.workspace, WithdrawalRequest("source", "left"))
    assert len(outcome.reach.examples) == 20
    audited.drop("b.jsonl", audited.record(5))
    audit_id = audit(audited.workspace, "tiny@champion").audit_id
    with audited.workspace.ledger().read() as connection:
        details = queries.audit_details(connection, audit_id)
    [finding] = [each for each in details.findings if each.rule == "withdrawn-data"]
    assert finding.severity == "high"
    assert "withdrawn_sha256" in details.audit.parameters
    assert not verify_workspace(audited.workspace).problems


def test_an_erased_person_is_in_no_file_and_everything_verifies(audited):
    preview = preview_erasure(audited.workspace, ErasureRequest(person="Jane Secret 3", personal_names=PERSONAL))
    assert preview.rows == (("personal_attribute", 6),)
    older, compared = (audited.workspace.reports / name for name in ("audits-1-200.html", "comparisons/a-b.html"))
    compared.parent.mkdir()
    for page in (older, compared, audited.workspace.reports / "index.html"):
        page.write_text("Jane Secret 3 dominates.")
    outcome = erase_data(audited.workspace, ErasureRequest(person="Jane Secret 3", personal_names=PERSONAL), "asked to")
    assert [kind for kind, _ in outcome.erased] == ["attribute"] * 6
    assert _files_with(audited.home, "Jane Secret 3") == []
    assert _files_with(audited.home, "Jane Secret 4") != []
    verification = verify_workspace(audited.workspace)
    assert not verification.problems
    assert f"6 rows of personal_attribute erased by event {outcome.events[0]}." in verification.notes
    assert any("registered manifest" in place for place in outcome.elsewhere)
    with pytest.raises(NotFoundError, match="No personal attribute"):
        erase_data(audited.workspace, ErasureRequest(person="Jane Secret 3"))


def test_an_erased_output_loses_payload_inbox_record_gradients_prediction_and_preview(audited):
    assert len(_files_with(audited.home, "secret note 2")) == 2
    outcome = erase_data(audited.workspace, ErasureRequest(output_ids=("inbox:out-2",)))
    assert (outcome.payloads, outcome.inbox_records) == (1, 1)
    assert len(outcome.reports) == 1
    assert _files_with(audited.home, "secret note 2") == []
    assert len(_files_with(audited.home, "secret note 1")) == 2
    report = json.loads((audited.workspace.reports / outcome.reports[0].split("/")[-1] / "report.json").read_text())
    shown = {section["output"]["output_id"]: section for section in report["outputs"]}
    assert shown["inbox:out-2"]["preview"]["text"] == f"erased by event {outcome.events[0]}"
    assert shown["inbox:out-2"]["result"]["prediction"] == ""
    assert shown["inbox:out-1"]["result"]["prediction"] != ""
    with audited.workspace.ledger().read() as connection:
        [found] = queries.indexes_of(connection, queries.model_versions(connection)[0].checkpoint_ids[-1])
    table = audited.workspace.gradients().existing(found.index_id)
    assert table.queries().example_ids == ["inbox:out-1", "inbox:out-3"]
    verification = verify_workspace(audited.workspace)
    assert not verification.problems
    assert f"1 payload erased by event {outcome.events[0]}." in verification.notes
    assert audit(audited.workspace, "tiny@champion").audit_id == ""


def test_an_erasure_waits_for_the_audit_that_is_being_made(audited):
    request = ErasureRequest(output_ids=("inbox:out-1",))
    with holding(audited.workspace.audit_lock("tiny/1")):
        erasing = threading.Thread(target=erase_data, args=(audited.workspace, request))
        erasing.start()
        erasing.join(1)
        assert erasing.is_alive()
        assert _files_with(audited.home, "secret note 1") != []
    erasing.join(60)
    assert _files_with(audited.home, "secret note 1") == []
    assert not verify_workspace(audited.workspace).problems


def test_an_erased_example_loses_its_previews_in_reports(audited):
    with audited.workspace.ledger().read() as connection:
        details = queries.audit_details(connection, queries.latest_audit(connection).audit_id)
    example_id = details.attributions[0].example_id
    outcome = erase_data(audited.workspace, ErasureRequest(example_ids=(example_id,)))
    report = json.loads((audited.workspace.reports / details.audit.audit_id / "report.json").read_text())
    cards = [card for section in report["outputs"] for card in section["proponents"] + section["opponents"]]
    erased = [card for card in cards if card["example_id"] == example_id]
    assert {card["preview"]["text"] for card in erased} == {f"erased by event {outcome.events[0]}"}
    assert not verify_workspace(audited.workspace).problems
    client = audited.workspace.registry().client
    with audited.workspace.ledger().read() as connection:
        recorded = queries.report_of(connection, details.audit.audit_id)
    uploaded = client.download_artifacts(recorded.mlflow_run_id, "report.html", str(audited.folder))
    assert f"erased by event {outcome.events[0]}" in open(uploaded).read()  # noqa: SIM115, PTH123 - a path MLflow gave


def test_a_lost_report_is_written_again_and_verifies_after_an_erasure(audited):
    erase_data(audited.workspace, ErasureRequest(output_ids=("inbox:out-1",)))
    with audited.workspace.ledger().read() as connection:
        audit_id = queries.latest_audit(connection).audit_id
    (audited.workspace.reports / audit_id / "report.html").unlink()
    assert ensure_report(audited.workspace, audit_id).rewritten
    assert not verify_workspace(audited.workspace).problems


def test_payloads_outlive_their_retention_no_longer_and_what_was_measured_stays(audited):
    assert retain_payloads.fn(audited.workspace, 1).erased == ()
    outcome = retain_payloads.fn(audited.workspace, 0)
    assert outcome.payloads == 3
    assert outcome.rows == ()
    assert not [path for path in (audited.home / "payloads").rglob("*") if path.is_file()]
    assert not list(audited.workspace.inbox.iterdir())
    assert not verify_workspace(audited.workspace).problems
    assert retain_payloads.fn(audited.workspace, 0).erased == ()


def test_an_inbox_file_that_the_disk_does_not_give_leaves_the_erasure_unfinished_and_is_named(audited):
    unreadable = audited.workspace.inbox / "b.jsonl"
    unreadable.symlink_to("/proc/self/mem")
    with pytest.raises(StoreError, match=r"not finished.*b\.jsonl: OSError: .*then run gradtrail erase") as raised:
        erase_data(audited.workspace, ErasureRequest(output_ids=("inbox:out-2",)))
    assert "a.jsonl" not in str(raised.value)
    assert [problem.kind for problem in verify_workspace(audited.workspace).problems] == ["erasure_unfinished"]
    unreadable.unlink()
    assert _files_with(audited.home, "secret note 2") == []
    assert erase_data(audited.workspace, None).erased
    assert not verify_workspace(audited.workspace).problems


def test_a_retention_that_a_damaged_file_holds_up_is_told_after_all_else_is_done(audited):
    table = pa.Table.from_pylist([audited.record(number, note=f"secret note {number}") for number in range(10, 80)])
    damaged = audited.workspace.inbox / "b.parquet"
    pq.write_table(table, damaged, row_group_size=64)
    place = pq.ParquetFile(damaged).metadata.row_group(1).column(0).data_page_offset
    content = bytearray(damaged.read_bytes())
    content[place : place + 200] = bytes(200)
    damaged.write_bytes(content)
    assert audit(audited.workspace, "tiny@champion").output_count == 64
    workspace = replace(audited.workspace, payload_retention_days=30)
    with pytest.raises(StoreError, match=r"b\.parquet"):
        retain_payloads.fn(workspace, 0)
    audited.drop("c.jsonl", audited.record(4))
    with pytest.raises(StoreError, match=r"Not done: payload retention: .*b\.parquet.*or delete them"):
        audit(workspace, "tiny@champion")
    with workspace.ledger().read() as connection:
        assert queries.pending_outputs(connection, "tiny/1", target="emitted") == []
        assert queries.report_of(connection, queries.latest_audit(connection).audit_id) is not None
    damaged.unlink()
    assert audit(workspace, "tiny@champion").audit_id == ""
    assert not verify_workspace(workspace).problems


def test_a_payload_that_is_back_after_its_erasure_is_named(audited):
    [path] = [
        each for each in (audited.home / "payloads").rglob("*") if each.is_file() and b"note 3" in each.read_bytes()
    ]
    content = path.read_bytes()
    erase_data(audited.workspace, ErasureRequest(output_ids=("inbox:out-3",)))
    path.write_bytes(content)
    [problem] = verify_workspace(audited.workspace).problems
    assert (problem.kind, problem.subject) == ("payload", "inbox:out-3")
    assert "is there again" in problem.message


def test_the_same_data_ingested_again_does_not_bring_back_what_was_erased(audited):
    erase_data(audited.workspace, ErasureRequest(person="Jane Secret 2", personal_names=PERSONAL))
    audited.register()
    ingest(audited.workspace, "tiny/2")
    index(audited.workspace, "tiny/2")
    assert _files_with(audited.home, "Jane Secret 2") == []
    assert not verify_workspace(audited.workspace).problems


KILLED = """
import os, signal, sys
import gradtrail.tasks.govern.erasing as erasing
from gradtrail.lineage.erasure.plan import ErasureRequest
from gradtrail.tasks.core.workspace import Workspace

module, name, home, tracking_uri, folder = sys.argv[1:]
target = sys.modules[module]
def strike(*arguments, **options):
    os.kill(os.getpid(), signal.SIGKILL)
setattr(target, name, strike)
workspace = Workspace(home=home, tracking_uri=tracking_uri, artifact_root="", gradients_uri=home + "/gradients",
                      mlflow_url="http://127.0.0.1:5000", adapter_path=folder, personal_attributes=("author",))
erasing.erase_data(workspace, ErasureRequest(example_ids=("row-3",), output_ids=("inbox:out-2",)))
"""
STRIKES = [
    ("gradtrail.lineage.erasure.erasures", "append"),
    ("gradtrail.tasks.govern.erasing", "rewrite_database"),
    ("gradtrail.lineage.erasure.rewriting", "_flush"),
    ("gradtrail.tasks.govern.erasing", "remove_records"),
    ("gradtrail.tasks.govern.erasing", "_rewrite_manifests"),
    ("gradtrail.tasks.govern.erasing", "record_revision"),
    ("gradtrail.tasks.report.writing", "record_revision"),
    ("gradtrail.lineage.ledger.file", "copy_and_seal"),
    ("gradtrail.lineage.erasure.erasures", "finish"),
]
FEW = {"_flush", "finish"}


@pytest.mark.parametrize(
    ("module", "name"),
    [pytest.param(*strike, marks=pytest.mark.ci if strike[1] in FEW else pytest.mark.slow) for strike in STRIKES],
)
def test_an_erasure_killed_anywhere_verifies_or_is_named_and_the_next_run_finishes_it(audited, module, name):
    workspace = audited.workspace
    arguments = [module, name, workspace.home, workspace.tracking_uri, str(audited.folder)]
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, *arguments], env={**os.environ, "MLFLOW_LOGGING_LEVEL": "ERROR"}, check=False
    )
    assert killed.returncode == -signal.SIGKILL
    problems = verify_workspace(workspace).problems
    with workspace.ledger().read() as connection:
        pending = erasures.unfinished(connection)
    assert {problem.kind for problem in problems} == ({"erasure_unfinished"} if pending else set())
    erase_data(workspace, None if pending else ErasureRequest(example_ids=("row-3",), output_ids=("inbox:out-2",)))
    assert not verify_workspace(workspace).problems
    assert _files_with(audited.home, "secret note 2") == []
    with workspace.ledger().read() as connection:
        assert erasures.unfinished(connection) == []
        assert queries.events(connection, 1)[0].kind == erasures.FINISHED
