"""The committed home, made by commit f0bbf55: today's code opens, verifies and audits it elsewhere, under its ids."""

from __future__ import annotations

import importlib.util
import json
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

from gradtrail.digests import sha256_file
from gradtrail.flows.audit import audit
from gradtrail.flows.reaudit import reaudit
from gradtrail.lineage.ledger.migrations import version_of
from gradtrail.lineage.read import listings, queries
from gradtrail.lineage.schema.files import newest_version
from gradtrail.lineage.sql.answering import run_sql
from gradtrail.tasks.audit.options import AuditOptions
from gradtrail.tasks.govern.verifying import verify_workspace

HERE = Path(__file__).parent
SAID: dict[str, Any] = json.loads((HERE / "f0bbf55.json").read_text())


def _old_project() -> Any:
    specification = importlib.util.spec_from_file_location("old_home_project", HERE / "project.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = module  # dataclasses look their module up
    specification.loader.exec_module(module)
    return module


PROJECT = _old_project()


@pytest.fixture(scope="module")
def old(prefect_server: None, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The home, moved: paths below the folder where it was made are in its ledger, its MLflow and its reports."""
    place = tmp_path_factory.mktemp("old")
    with tarfile.open(HERE / "f0bbf55.tar.xz") as archive:
        archive.extractall(place, filter="data")
    return PROJECT.OldProject(place)


@pytest.fixture(scope="module")
def verified(old: Any) -> Any:
    """What verification finds before anything else is done with the home."""
    return verify_workspace(old.settings.workspace())


@pytest.fixture(scope="module")
def audited(old: Any, verified: Any) -> dict[str, str]:
    """New outputs audited by what was calibrated, and all outputs by other methods: audit id by method."""
    workspace = old.settings.workspace()
    old.drop("d.jsonl", 7, 8)
    made = {"auto": audit(workspace, PROJECT.MODEL).audit_id}
    for method in SAID["next"]:
        if method != "auto":
            made[method] = reaudit(workspace, PROJECT.MODEL, AuditOptions(method)).audit_id
    return made


def test_it_verifies_and_says_what_was_erased(old: Any, verified: Any) -> None:
    assert verified.problems == ()
    assert set(SAID["notes"]) <= set(verified.notes)
    of_migrations = {"events", "rows"}
    counted_then = SAID["checked"].keys() - of_migrations  # newer code counts more
    assert {name: verified.checked[name] for name in counted_then} == {
        name: SAID["checked"][name] for name in counted_then
    }
    assert verified.checked["copies in MLflow"] > 0


def test_its_ids_are_those_that_the_old_code_reads(old: Any, verified: Any) -> None:
    columns = {table: f"{table}_id" for table in SAID["ids"]} | {"gradient_index": "index_id"}
    snapshot = old.settings.workspace().snapshot
    found = {
        table: run_sql(snapshot, f"SELECT DISTINCT {column} AS id FROM {table} ORDER BY 1")["id"].to_pylist()  # noqa: S608
        for table, column in columns.items()
    }
    assert found == SAID["ids"]


def test_its_reports_are_the_ones_that_were_recorded(old: Any, verified: Any) -> None:
    with old.settings.workspace().ledger().read() as connection:
        reports = listings.reports(connection)
        assert version_of(connection) == newest_version()
    assert {report.audit_id for report in reports} <= set(SAID["ids"]["audit"])
    assert len(reports) == 3
    for report in reports:
        html = Path(report.html_uri)
        assert html.is_relative_to(old.folder)
        assert sha256_file(html) == report.html_sha256
        assert json.loads((html.parent / "report.json").read_text())["evidence"]["audit_id"] == report.audit_id


@pytest.mark.parametrize("method", sorted(SAID["next"]))
def test_the_next_audits_have_the_ids_and_scores_of_the_old_code(
    old: Any, audited: dict[str, str], method: str
) -> None:
    expected = SAID["next"][method]
    assert audited[method] == expected["audit_id"]
    with old.settings.workspace().ledger().read() as connection:
        details = queries.audit_details(connection, audited[method])
    scores = {(a.output_id, a.example_id, a.side): a.score for a in details.attributions}
    wanted = {(output, example, side): score for output, example, side, _, score in expected["attributions"]}
    assert scores == pytest.approx(wanted, rel=1e-4)
    shares = {(s.output_id, s.side, s.attribute, s.value): s.share for s in details.shares}
    wanted = {(output, side, attribute, value): share for output, side, attribute, value, share in expected["shares"]}
    assert shares == pytest.approx(wanted, rel=1e-4)
    assert [[f.rule, f.severity, f.output_id] for f in details.findings] == expected["findings"]


def test_it_verifies_after_the_new_audits(old: Any, audited: dict[str, str]) -> None:
    found = verify_workspace(old.settings.workspace())
    assert found.problems == ()
    assert found.checked["report files"] > SAID["checked"]["report files"]
