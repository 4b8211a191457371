"""From MLflow to the reports and back: every link leads somewhere, and MLflow draws a model's audits as a trend."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from urllib.parse import unquote
from urllib.request import urlopen

import pytest
from mlflow.exceptions import MlflowException
from selenium.webdriver.common.by import By
from typer.testing import CliRunner

from gradtrail.cli import app
from gradtrail.lineage.read import queries
from gradtrail.storage.models.audit_runs import AUDIT_EXPERIMENT, AUDIT_TAG, INDEX_TAG, NOTE_TAG, TREND_TAG
from gradtrail.tasks.report.building import build_report
from gradtrail.tasks.report.index_pages import write_report_index
from gradtrail.tasks.report.reported_audits import ShownAudit, reported_audit
from gradtrail.tasks.reporting import publish_report_index
from gradtrail.tasks.trends import record_trend

BASE = "http://127.0.0.1:5000"


@pytest.fixture
def audits(demo):
    with demo.workspace.ledger().read() as connection:
        return queries.audits(connection, "digits/1")


def _summary(demo, tag, value):
    client = demo.workspace.registry().client
    experiment = client.get_experiment_by_name(AUDIT_EXPERIMENT)
    found = client.search_runs([experiment.experiment_id], f"tags.`{tag}` = '{value}'")
    assert len(found) == 1
    return found[0]


def _leads_somewhere(demo, address):
    """Whether MLflow has what a deep link names."""
    client = demo.workspace.registry().client
    parts = [unquote(part) for part in address.removeprefix(f"{BASE}/#/").split("/")]
    try:
        if parts[0] == "models":
            assert client.get_registered_model(parts[1])
            return len(parts) == 2 or bool(client.get_model_version(parts[1], parts[3]))
        assert client.get_run(parts[3]).info.experiment_id == parts[1]
    except MlflowException:
        return False
    if parts[4:5] == ["artifacts"]:
        return parts[5] in {artifact.path for artifact in client.list_artifacts(parts[3])}
    return parts[4:] in ([], ["model-metrics"])


def _markdown_links(text):
    return dict(re.findall(r"\[([^\]]+)\]\((http[^)]+)\)", text))


def test_the_trend_of_a_model_has_one_step_an_audit_however_often_it_is_recorded(demo, audits):
    client, run = demo.workspace.registry().client, _summary(demo, TREND_TAG, "digits")
    for audit in audits:
        assert record_trend.fn(ShownAudit(demo.workspace, audit.audit_id)) == run.info.run_id
    points = client.get_metric_history(run.info.run_id, "outputs")
    assert [(point.step, point.value) for point in points] == [
        (number, len(audit.outputs)) for number, audit in enumerate(audits, 1)
    ]
    assert points == sorted(points, key=lambda point: point.timestamp)
    assert {
        "findings_high",
        "coverage_parameters",
        "outputs_wrong",
        "share_source/web-crawl",
    } <= run.data.metrics.keys()


def test_the_figures_of_audits_stand_on_the_page_of_the_model(demo, audits):
    client = demo.workspace.registry().client
    model = client.get_logged_model(client.get_model_version("digits", "1").tags["gradtrail.logged_model"])
    runs = [_summary(demo, AUDIT_TAG, audit.audit_id) for audit in audits]
    assert {each.run_id for each in model.metrics} == {run.info.run_id for run in runs}
    shown = {each.key: each.value for each in model.metrics if each.run_id == runs[-1].info.run_id}
    assert {"fidelity", "findings_high", "share_source/web-crawl"} <= shown.keys()
    assert shown == runs[-1].data.metrics
    inputs = client.get_run(runs[-1].info.run_id).inputs  # a search leaves models out
    assert [each.model_id for each in inputs.model_inputs] == [model.model_id]


def test_every_link_in_mlflow_leads_to_something_that_is_there(demo, audits):
    client = demo.workspace.registry().client
    version = client.get_model_version("digits", "1")
    trend, index = _summary(demo, TREND_TAG, "digits"), _summary(demo, INDEX_TAG, "all")
    audit_run = _summary(demo, AUDIT_TAG, audits[-1].audit_id)
    texts = {
        "model": (client.get_registered_model("digits").description, {"report", "audit run", "trend", "all audits"}),
        "version": (version.description, {"report", "audit run", "trend", "all audits"}),
        "training run": (client.get_run(version.run_id).data.tags[NOTE_TAG], {"report", "trend", "all audits"}),
        "audit run": (audit_run.data.tags[NOTE_TAG], {"Open the report", "model version", "training run", "trend"}),
        "trend": (trend.data.tags[NOTE_TAG], {"Charts", "model", "all audits"}),
        "index": (index.data.tags[NOTE_TAG], {"Open the index"}),
    }
    for text, expected in texts.values():
        links = _markdown_links(text)
        assert expected <= links.keys()
        assert all(_leads_somewhere(demo, address) for address in links.values())
    assert audit_run.info.run_id in _markdown_links(texts["model"][0])["report"]


def test_the_report_leads_back_to_all_of_them(demo, audits):
    links = build_report(demo.workspace, reported_audit(demo.workspace, audits[-1].audit_id)).model_links
    assert list(links) == ["Model version", "Training run", "Audit run", "Trend", "All audits"]
    assert all(_leads_somewhere(demo, address) for address in links.values())
    served = replace(demo.workspace, report_url="https://reports.example/gradtrail")
    assert build_report(served, reported_audit(served, audits[-1].audit_id)).model_links["All audits"] == (
        "https://reports.example/gradtrail/index.html"
    )


def test_the_index_is_there_after_an_audit_and_leads_to_every_report(demo, audits):
    index = demo.workspace.reports / "index.html"
    before = index.read_bytes()
    targets = set(re.findall(r'class="report" href="([^"]+)"', before.decode()))
    assert targets == {f"{audit.audit_id}/report.html" for audit in audits}
    assert all((index.parent / target).is_file() for target in targets)
    publish_report_index.fn(demo.workspace)
    assert index.read_bytes() == before
    index.unlink()
    assert write_report_index(demo.workspace).read_bytes() == before


@pytest.mark.parametrize("arguments", [["--compare", "ffffffffffff", "eeeeeeeeeeee"], ["abc", "--serve"]])
def test_what_cannot_be_compared_or_served_is_refused(demo, arguments):
    result = CliRunner().invoke(app, ["report", *arguments, "--home", str(demo.settings.home)])
    assert result.exit_code != 0
    assert result.exception is not None
    assert "Give its id" in str(result.exception) or "Choose one" in str(result.exception)


def test_an_audit_is_not_compared_with_itself(demo, audits):
    again = [audits[0].audit_id[:12], audits[0].audit_id]
    result = CliRunner().invoke(app, ["report", "--compare", *again, "--home", str(demo.settings.home)])
    assert "Name two audits" in str(result.exception)
    assert not (demo.workspace.reports / "comparisons").exists() or not any(
        (demo.workspace.reports / "comparisons").glob("*.html")
    )


@pytest.fixture
def served(demo) -> Iterator[str]:
    """The address of `gradtrail report --serve`, ended as a person ends it."""
    # Where the tests run in the background, a shell lets them ignore what a person's Ctrl-C sends.
    heeding = ["env", "--default-signal=INT"]
    command = [*heeding, sys.executable, "-m", "gradtrail.cli", "report", "--serve", "--port", "0"]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        [*command, "--home", str(demo.settings.home)],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    try:
        yield re.search(r"http://127\.0\.0\.1:\d+", line)[0]
    finally:
        process.send_signal(signal.SIGINT)
        rest = process.communicate(timeout=60)[0]
    assert "Stopped." in rest
    assert process.returncode == 0


@pytest.mark.browser
def test_served_reports_are_followed_from_the_index_and_back(demo, audits, served, browser):
    browser.get(f"{served}/")
    browser.find_element(By.CSS_SELECTOR, "tr[data-audit] a.report").click()
    assert browser.current_url == f"{served}/{audits[-1].audit_id}/report.html"
    browser.find_element(By.LINK_TEXT, "all audits").click()
    assert browser.current_url == f"{served}/index.html"
    assert browser.find_element(By.TAG_NAME, "h1").text == "All audits"
    with urlopen(f"{served}/{audits[0].audit_id}/report.json") as answer:  # noqa: S310 - our own server
        assert answer.headers["Content-Type"] == "application/json"
