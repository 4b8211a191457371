"""MLflow's own pages in Chromium: from run, version, model and trace to the report and its outputs, and back."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import replace

import httpx
import mlflow
import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.support import expected_conditions
from selenium.webdriver.support.ui import WebDriverWait

from gradtrail.addresses import output_anchor
from gradtrail.flows.audit import audit
from gradtrail.flows.index import index
from gradtrail.flows.ingest import ingest
from gradtrail.lineage.read import queries
from gradtrail.reports.index.serving import report_server
from gradtrail.reports.write import write_report
from gradtrail.storage.models.audit_runs import open_index_run, uploaded_names
from gradtrail.storage.sources.config import SourceConfig
from gradtrail.tasks.audit.options import AuditOptions
from gradtrail.tasks.report.building import build_report
from gradtrail.tasks.report.history import audit_history
from gradtrail.tasks.report.linking import lead_to_report
from gradtrail.tasks.report.reported_audits import reported_audit
from gradtrail.tasks.reporting import publish_report_index

PATIENCE = 180


@contextmanager
def served_by_mlflow(tracking_uri):
    """The address of an MLflow server over a database, until the end of the block."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    arguments = ["--backend-store-uri", tracking_uri, "--host", "127.0.0.1", "--port", str(port)]
    process = subprocess.Popen(
        [sys.executable, "-m", "mlflow", "server", *arguments, "--workers", "1"],
        env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + PATIENCE
        while True:
            assert process.poll() is None, "mlflow server stopped"
            assert time.monotonic() < deadline, "mlflow server did not start"
            try:
                if httpx.get(f"{address}/health", timeout=5).is_success:
                    break
            except httpx.TransportError:
                time.sleep(0.5)
        yield address
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=60)


@contextmanager
def served_reports(folder):
    """The address of a folder of reports, until the end of the block."""
    with report_server(folder, 0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def mlflow_server(demo):
    with served_by_mlflow(demo.workspace.tracking_uri) as address:
        yield address


@pytest.fixture
def reports(demo, tmp_path):
    """A folder of reports of its own, and where it is served."""
    folder = tmp_path / "reports"
    shutil.copytree(demo.workspace.reports, folder)
    with served_reports(folder) as address:
        yield folder, address


@pytest.fixture
def linked(demo, mlflow_server, reports):
    """The newest audit, linked at the addresses of both servers; afterwards as the demo left it."""
    folder, served = reports
    workspace = replace(demo.workspace, mlflow_url=mlflow_server, report_url=served)
    with workspace.ledger().read() as connection:
        newest = queries.audits(connection, "digits/1")[-1]
        history = [each.past for each in audit_history(connection, "digits")]
    write_report(build_report(workspace, reported_audit(workspace, newest.audit_id)), folder)
    recorded = reported_audit(workspace, newest.audit_id)
    lead_to_report(workspace.registry(), workspace.links(), recorded, history)
    yield workspace, newest, recorded
    lead_to_report(workspace.registry(), demo.workspace.links(), recorded, history)


@pytest.fixture
def follow(browser):
    """Clicks the link with this text, and goes on in the tab that it opens where it opens one."""
    wait = WebDriverWait(browser, PATIENCE)

    def followed(text):
        before, tabs = browser.current_url, browser.window_handles
        wait.until(expected_conditions.element_to_be_clickable((By.LINK_TEXT, text))).click()
        wait.until(lambda chrome: len(chrome.window_handles) > len(tabs) or chrome.current_url != before)
        if opened := set(browser.window_handles) - set(tabs):
            browser.close()
            browser.switch_to.window(opened.pop())
        wait.until(lambda chrome: chrome.current_url not in ("about:blank", before))

    return followed


@pytest.mark.slow
@pytest.mark.browser
def test_every_page_of_mlflow_leads_to_the_report_and_the_report_back(linked, browser, follow):
    workspace, newest, recorded = linked
    links, report = workspace.links(), f"{workspace.report_url}/{newest.audit_id}/report.html"
    wait = WebDriverWait(browser, PATIENCE)

    def back_by(text, address):
        follow(text)
        assert browser.current_url == address

    version, trained = links.model_version("digits", 1), links.run(recorded.run.experiment_id, recorded.run.run_id)
    for page, name in ((trained, "Training run"), (version, "Model version")):
        browser.get(page)
        follow("report")
        assert browser.current_url == report
        assert browser.find_element(By.TAG_NAME, "h1").text == "Audit of digits, version 1"
        back_by(name, page)
    browser.get("about:blank")
    browser.get(links.model("digits"))
    follow("all audits")
    assert browser.current_url == f"{workspace.report_url}/index.html"
    browser.find_element(By.CSS_SELECTOR, "tr[data-audit] a.report").click()
    back_by("Trend", links.metrics(recorded.trend_run))
    wait.until(expected_conditions.presence_of_element_located((By.CSS_SELECTOR, ".js-plotly-plot")))

    output_id = newest.outputs[-1][0]
    browser.get(links.output(newest.audit_id, output_id, recorded.audit_run))
    assert browser.find_element(By.ID, output_anchor(output_id)).is_displayed()

    inside = replace(links, report_url="")
    browser.get("about:blank")
    browser.get(inside.index(recorded.index_run))
    wait.until(expected_conditions.frame_to_be_available_and_switch_to_it((By.TAG_NAME, "iframe")))
    wait.until(expected_conditions.presence_of_element_located((By.ID, "search"))).send_keys(newest.audit_id[:12])
    assert browser.find_element(By.ID, "shown").text.startswith("1 ")
    browser.switch_to.default_content()


@pytest.fixture
def audited_trace(tiny, prefect_server, monkeypatch, tmp_path):
    """A model with two audits, the second of a trace; both servers; and the trace."""
    monkeypatch.setenv("MLFLOW_ENABLE_ASYNC_TRACE_LOGGING", "false")
    tiny.workspace.reports.mkdir(parents=True)
    with served_by_mlflow(tiny.workspace.tracking_uri) as mlflow_url, served_reports(tiny.workspace.reports) as served:
        source = SourceConfig(
            "production", "traces", experiments=("serving",),
            fields={"inputs": "request.inputs", "prediction": "response.prediction"},
        )  # fmt: skip
        workspace = replace(
            tiny.workspace, tracking_uri=mlflow_url, mlflow_url=mlflow_url, report_url=served, sources=(source,)
        )
        client = workspace.registry().client
        experiment_id = client.create_experiment("serving", artifact_location=str(tmp_path / "traces"))
        tiny.register()
        ingest(workspace, "tiny@champion")
        index(workspace, "tiny@champion")
        tiny.drop("first.jsonl", *(tiny.record(number) for number in range(3)))
        audit(workspace, "tiny@champion")
        made = tiny.record(5)
        tags = {"gradtrail.audit": "pending", "gradtrail.model": "tiny", "gradtrail.version": "1"}
        before = mlflow.get_tracking_uri()
        mlflow.set_tracking_uri(mlflow_url)
        try:
            inputs = {"inputs": made["inputs"]}
            root = client.start_trace("classify", inputs=inputs, tags=tags, experiment_id=experiment_id)
            client.end_trace(root.trace_id, outputs={"prediction": made["prediction"]})
        finally:
            mlflow.set_tracking_uri(before)
        outcome = audit(workspace, "tiny@champion", AuditOptions(method="grad_dot"))
        yield workspace, outcome.audit_id, experiment_id, root.trace_id


@pytest.mark.slow
@pytest.mark.browser
def test_a_trace_leads_to_its_own_section_of_the_report_and_the_section_back(audited_trace, browser, follow):
    workspace, audit_id, experiment_id, trace_id = audited_trace
    wait = WebDriverWait(browser, PATIENCE)
    page = workspace.links().trace(experiment_id, trace_id)
    output_id = f"production:{trace_id}"

    def press(path):
        """Click a button that may lie below one of MLflow's hints."""
        button = wait.until(expected_conditions.presence_of_element_located((By.XPATH, path)))
        browser.execute_script("arguments[0].click()", button)

    # MLflow hides a trace's feedback in a narrow window.
    metrics = {"width": 1600, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    browser.get(page)
    press("//button[starts-with(normalize-space(), 'Assess')]")
    press("//button[@data-component-id='shared.model-trace-explorer.toggle-assessment-expanded']")
    follow("report")
    anchor = output_anchor(output_id)
    assert browser.current_url == f"{workspace.report_url}/{audit_id}/report.html#{anchor}"
    section = browser.find_element(By.ID, anchor)
    assert section.is_displayed()
    assert output_id in section.find_element(By.XPATH, "./ancestor::details").text
    follow(output_id)
    wait.until(lambda chrome: "classify" in chrome.find_element(By.TAG_NAME, "body").text)
    assert trace_id in browser.current_url

    browser.get(f"{workspace.report_url}/")
    rows = browser.find_elements(By.CSS_SELECTOR, "tr[data-audit]")
    assert len(rows) == 2
    browser.find_element(By.ID, "search").send_keys("grad_dot")
    assert [row.get_attribute("data-audit") for row in rows if row.is_displayed()] == [audit_id]
    browser.find_element(By.ID, "search").clear()
    browser.execute_script("document.getElementById('search').dispatchEvent(new Event('input'))")
    for row in rows:
        row.find_element(By.CSS_SELECTOR, "input[type=checkbox]").click()
    comparison = browser.find_element(By.ID, "comparison")
    assert comparison.is_displayed()
    assert "grad_dot" in comparison.text
    comparison.find_elements(By.CSS_SELECTOR, "a.compared-report")[-1].click()
    assert browser.current_url == f"{workspace.report_url}/{audit_id}/report.html"

    publish_report_index(workspace, 1)
    older = workspace.reports / "audits-1-1.html"
    written = older.stat().st_mtime_ns
    publish_report_index(workspace, 1)
    assert older.stat().st_mtime_ns == written
    browser.get(f"{workspace.report_url}/")
    assert len(browser.find_elements(By.CSS_SELECTOR, "tr[data-audit]")) == 1
    follow("1 to 1")
    assert browser.find_element(By.TAG_NAME, "h1").text == "Audits 1 to 1"
    follow("The newest audits")
    assert browser.current_url == f"{workspace.report_url}/index.html"
    registry = workspace.registry()
    assert {"index.html", older.name} <= uploaded_names(registry, open_index_run(registry).run_id)
