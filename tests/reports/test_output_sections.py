"""A link to one output opens its section of the report, although a report runs no script."""

from __future__ import annotations

from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By

from gradtrail.addresses import output_anchor
from gradtrail.reports.model import AuditReport
from gradtrail.reports.render import render_html


@pytest.mark.browser
def test_the_address_of_an_output_opens_its_section(
    browser: webdriver.Chrome, sample_report: AuditReport, tmp_path: Path
) -> None:
    page = tmp_path / "report.html"
    page.write_text(render_html(sample_report), encoding="utf-8")
    browser.get(page.as_uri())
    closed = browser.find_elements(By.CSS_SELECTOR, "details.output")[-1]
    assert closed.get_attribute("open") is None
    anchor = closed.find_element(By.CSS_SELECTOR, ".output-body").get_attribute("id")
    assert anchor in {output_anchor(section.output.output_id) for section in sample_report.outputs}
    browser.get("about:blank")
    browser.get(f"{page.as_uri()}#{anchor}")
    section = browser.find_element(By.ID, str(anchor))
    assert section.is_displayed()
    place = "const r = arguments[0].getBoundingClientRect(); return r.top >= 0 && r.top < innerHeight"
    assert browser.execute_script(place, section)
