"""MLflow's own pages in Chromium: from a run, a version and a model to the report, to one output of it, and back."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace

import httpx
import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.support import expected_conditions
from selenium.webdriver.support.ui import WebDriverWait

from gradtrail.addresses import output_anchor
from gradtrail.lineage import queries
from gradtrail.reports.index_serving import report_server
from gradtrail.reports.write import write_report
from gradtrail.tasks.history import audit_history
from gradtrail.tasks.linking import lead_to_report
from gradtrail.tasks.reporting import build_report, recorded_audit

PATIENCE = 180


@pytest.fixture
def mlflow_server(demo):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    arguments = ["--backend-store-uri", demo.workspace.tracking_uri, "--host", "127.0.0.1", "--port", str(port)]
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


@pytest.fixture
def reports(demo, tmp_path):
    """A folder of reports of its own, and where it is served."""
    folder = tmp_path / "reports"
    shutil.copytree(demo.workspace.reports, folder)
    with report_server(folder, 0) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield folder, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture
def linked(demo, mlflow_server, reports):
    """The newest audit, linked at the addresses of both servers; afterwards as the demo left it."""
    folder, served = reports
    workspace = replace(demo.workspace, mlflow_url=mlflow_server, report_url=served)
    with workspace.ledger().read() as connection:
        audit = queries.audits(connection, "digits/1")[-1]
        history = [each.past for each in audit_history(connection, "digits")]
    write_report(build_report(workspace, audit.audit_id), folder)
    recorded = recorded_audit(workspace, audit.audit_id)
    lead_to_report(workspace.registry(), workspace.links(), recorded, history)
    yield workspace, audit, recorded
    lead_to_report(workspace.registry(), demo.workspace.links(), recorded, history)


@pytest.mark.slow
@pytest.mark.browser
def test_every_page_of_mlflow_leads_to_the_report_and_the_report_back(linked, browser):
    workspace, audit, recorded = linked
    links, report = workspace.links(), f"{workspace.report_url}/{audit.audit_id}/report.html"
    wait = WebDriverWait(browser, PATIENCE)

    def follow(text):
        """Click a link, in the tab that it opens where it opens one."""
        before = browser.current_url
        tabs = browser.window_handles
        wait.until(expected_conditions.element_to_be_clickable((By.LINK_TEXT, text))).click()
        wait.until(lambda chrome: len(chrome.window_handles) > len(tabs) or chrome.current_url != before)
        if opened := set(browser.window_handles) - set(tabs):
            browser.close()
            browser.switch_to.window(opened.pop())
        wait.until(lambda chrome: chrome.current_url not in ("about:blank", before))

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

    output_id = audit.outputs[-1][0]
    browser.get(links.output(audit.audit_id, output_id, recorded.audit_run))
    assert browser.find_element(By.ID, output_anchor(output_id)).is_displayed()

    inside = replace(links, report_url="")
    browser.get("about:blank")
    browser.get(inside.index(recorded.index_run))
    wait.until(expected_conditions.frame_to_be_available_and_switch_to_it((By.TAG_NAME, "iframe")))
    wait.until(expected_conditions.presence_of_element_located((By.ID, "search"))).send_keys(audit.audit_id[:12])
    assert browser.find_element(By.ID, "shown").text.startswith("1 of ")
    browser.switch_to.default_content()
