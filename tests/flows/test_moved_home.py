"""A home folder is moved whole: its ledger, its MLflow and its reports go with it, and everything goes on."""

import json
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import duckdb
import pytest
from mlflow.artifacts import download_artifacts
from mlflow.tracking._tracking_service.utils import _artifact_repos_cache

from gradtrail.api import connect
from gradtrail.digests import sha256_file
from gradtrail.errors import StoreError
from gradtrail.flows.audit import audit
from gradtrail.flows.index import index
from gradtrail.flows.ingest import ingest
from gradtrail.lineage.erasure.plan import ErasureRequest
from gradtrail.lineage.read import listings, queries
from gradtrail.settings import Settings
from gradtrail.storage.models.moved_home import follow_moved_home
from gradtrail.tasks.govern.erasing import erase_data
from gradtrail.tasks.govern.verifying import verify_workspace
from gradtrail.tasks.report.writing import ensure_report

pytestmark = pytest.mark.ci  # whole homes are copied and audited

MODEL = "tiny@champion"


class Moved:
    """A project whose home was audited, copied elsewhere and removed; and the workspace where it is now."""

    def __init__(self, tiny, elsewhere):
        tiny.register()
        ingest(tiny.workspace, MODEL)
        index(tiny.workspace, MODEL)
        tiny.drop("a.jsonl", tiny.record(1), tiny.record(2))
        self.first = audit(tiny.workspace, MODEL)
        self.before = tiny.home
        self.home = elsewhere / "other" / "place"
        shutil.copytree(tiny.home, self.home)
        shutil.rmtree(tiny.home)
        # Who moves a home ends what runs on it; MLflow keeps the folder of each run for as long as its process lives.
        _artifact_repos_cache.clear()
        self.settings = Settings(home=self.home, allowed_adapters=(tiny.reference,), adapter_path=tiny.folder)
        self.workspace = self.settings.workspace()
        self.tiny = tiny
        tiny.home, tiny.settings, tiny.workspace = self.home, self.settings, self.workspace


@pytest.fixture(scope="module")
def moved(prefect_server, tmp_path_factory, migrated_mlflow, tiny_project):
    return Moved(tiny_project(tmp_path_factory.mktemp("before"), migrated_mlflow), tmp_path_factory.mktemp("after"))


def texts_with(home, text):
    """Columns of the ledger that hold a text."""
    found = []
    with duckdb.connect(str(home / "ledger.duckdb"), read_only=True) as connection:
        query = "SELECT table_name, column_name FROM duckdb_columns() JOIN duckdb_tables() USING (table_name)"
        for table, column in connection.execute(query).fetchall():
            holding = f'SELECT count(*) FROM "{table}" WHERE contains("{column}"::VARCHAR, ?)'  # noqa: S608
            if connection.execute(holding, [text]).fetchall() != [(0,)]:
                found.append(f"{table}.{column}")
    return found


def test_the_ledger_names_no_folder_outside_of_it(moved):
    assert texts_with(moved.home, str(moved.before)) == []
    assert texts_with(moved.home, "manifests/") == ["dataset_version.manifest_uri"]


def test_it_verifies_where_it_is_now(moved):
    found = verify_workspace(moved.workspace)
    assert found.problems == ()
    assert found.checked["report files"] >= 3
    assert found.checked["checkpoints"] == 1


def test_its_mlflow_finds_the_files_of_runs(moved):
    client = moved.workspace.registry().client
    locations = {each.name: each.artifact_location for each in client.search_experiments()}
    assert locations["tiny"] == locations["gradtrail audits"] == (moved.home / "artifacts").as_uri()
    with moved.workspace.ledger().read() as connection:
        [report] = listings.reports(connection)
    copy = download_artifacts(
        run_id=report.mlflow_run_id, artifact_path="report.json", tracking_uri=client.tracking_uri
    )
    assert Path(copy).read_bytes() == Path(report.html_uri).with_name("report.json").read_bytes()
    [source] = [each.dataset.source for each in client.get_run(queried_run(moved)).inputs.dataset_inputs]
    assert str(moved.before) not in source


def queried_run(moved):
    with moved.workspace.ledger().read() as connection:
        return queries.model_version(connection, "tiny/1").run_id


def test_it_explains_reports_audits_and_erases(moved):
    explained = connect(moved.home).explain("inbox:out-1")
    report = Path(explained.report.html_uri)
    assert report == moved.home / "reports" / moved.first.audit_id / "report.html"
    assert sha256_file(report) == explained.report.html_sha256
    assert Path(explained.checkpoint.weights_uri).is_file()
    found = ensure_report(moved.workspace, moved.first.audit_id)
    assert (found.html, found.rewritten) == (str(report), False)

    assert ingest(moved.workspace, MODEL).model_version_id == "tiny/1"
    assert audit(moved.workspace, MODEL).audit_id == ""
    moved.tiny.drop("b.jsonl", moved.tiny.record(3))
    second = audit(moved.workspace, MODEL)
    assert second.output_count == 1
    assert Path(second.report).is_relative_to(moved.home)
    erased = erase_data(moved.workspace, ErasureRequest(output_ids=("inbox:out-2",)), "asked to")
    assert erased.reports == (str(report.parent),)
    assert "inbox:out-2" not in json.loads(report.with_name("report.json").read_text())["outputs"]
    assert verify_workspace(moved.workspace).problems == ()
    assert [str(path) for path in moved.before.rglob("*")] == []


def test_a_team_s_artifacts_are_not_taken_for_a_home(tmp_path):
    """Another folder called artifacts is only led here where the files of its runs lie here."""
    database = tmp_path / "mlflow.db"
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("CREATE TABLE experiments (experiment_id INTEGER, artifact_location TEXT)")
        connection.execute("CREATE TABLE runs (run_uuid TEXT, experiment_id INTEGER, artifact_uri TEXT)")
        connection.execute("INSERT INTO experiments VALUES (1, 'file:///team/artifacts'), (2, 's3://team/artifacts')")
        connection.execute("INSERT INTO runs VALUES ('run1', 1, 'file:///team/artifacts/run1/artifacts')")
    assert not follow_moved_home(database, tmp_path / "artifacts")
    (tmp_path / "artifacts" / "run1").mkdir(parents=True)
    assert follow_moved_home(database, tmp_path / "artifacts")
    assert not follow_moved_home(database, tmp_path / "artifacts")
    with closing(sqlite3.connect(database)) as connection:
        assert connection.execute("SELECT artifact_uri FROM runs").fetchall() == [
            ((tmp_path / "artifacts/run1/artifacts").as_uri(),)
        ]
        assert connection.execute("SELECT artifact_location FROM experiments ORDER BY 1").fetchall() == [
            ((tmp_path / "artifacts").as_uri(),),
            ("s3://team/artifacts",),
        ]


def test_a_database_that_cannot_be_told_is_named(tmp_path):
    database = tmp_path / "mlflow.db"
    database.write_text("no database, but long enough to be read as the header of one" * 20)
    with pytest.raises(StoreError, match=r"moved to .* cannot be told so: file is not a database"):
        follow_moved_home(database, tmp_path / "artifacts")
