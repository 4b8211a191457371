"""The report index and comparisons: what they say, that they read without script, and what the script does."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from html import escape
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import Select

from gradtrail.lineage.read.audit_history import FiredRule, PastAudit
from gradtrail.lineage.read.comparisons import Compared
from gradtrail.nouns import Fidelity, Finding, Share
from gradtrail.reports.index.charts import HEIGHT, LEFT, WIDTH, fidelity_chart, findings_chart, share_chart
from gradtrail.reports.index.comparison import changed_findings, compare_page, compared_shares
from gradtrail.reports.index.model import IndexedAudit
from gradtrail.reports.index.page import MOST_DRAWN, index_page
from gradtrail.reports.index.parts import index_parts

SCRIPT = "<script>alert(1)</script>"
UNLICENSED = FiredRule("unlicensed-data", "high", 1, "Too much comes from the crawl.")
NOT_REPRODUCED = FiredRule("not-reproduced", "low", 3, "The checkpoint does not give it again.")


def share(attribute: str, value: str, size: float) -> Share:
    return Share(None, "proponent", attribute, value, size, 0.5)


def audit(
    model: str, number: int, crawl: float, *fired: FiredRule, fidelity: float | None = None, sequence: int = 0
) -> IndexedAudit:
    audit_id = f"{model}{number}".encode().hex().ljust(64, "0")
    past = PastAudit(
        audit_id=audit_id,
        number=number,
        recorded_at=datetime(2026, 3, 1, 6, tzinfo=UTC) + timedelta(days=7 * number),
        event_sequence=sequence or number,
        model=model,
        version=1 + number // 2,
        checkpoint_id="c" * 64,
        run_id="r",
        run_experiment_id="1",
        method="influence" if number < 3 else "ekfac",
        parameters={"relative_damping": 1.0},
        weighting_id="d" * 64,
        dataset_version_id="e" * 64,
        index_ids=("f" * 64,),
        target="emitted",
        outputs=10 * number,
        not_reproduced=0,
        parameter_share=1.0,
        example_share=0.99,
        shares=(
            share("source", "crawl", crawl),
            share("source", "archive", 1 - crawl),
            share("licence", "unknown", crawl),
        ),
        fired=fired,
        audit_run_id="a",
        audit_experiment_id="2",
    )
    measured = (
        None
        if fidelity is None
        else Fidelity("c" * 64, "influence", "d" * 64, "fidelity_subset", fidelity, 0.05, 0.9, 9)
    )
    links = {"model": "https://mlflow.example/#/models/m", "audit run": "https://mlflow.example/#/a"}
    return IndexedAudit(past, measured, f"{audit_id}/report.html", links)


@pytest.fixture
def audits() -> list[IndexedAudit]:
    return [
        audit("digits", 1, 0.2, NOT_REPRODUCED, sequence=1),
        audit("letters", 1, 0.9, UNLICENSED, sequence=2),
        audit("digits", 2, 0.3, UNLICENSED, NOT_REPRODUCED, fidelity=0.71, sequence=3),
        audit("digits", 3, 0.6, UNLICENSED, fidelity=0.64, sequence=4),
    ]


def rows_of(page: str) -> list[str]:
    return re.findall(r'<tr id="audit-(\w+)"', page)


def test_every_audit_is_a_row_under_its_model_the_newest_first(audits: list[IndexedAudit]) -> None:
    page = index_page(audits)
    assert rows_of(page) == [audits[place].past.audit_id for place in (3, 2, 0, 1)]
    assert all(f'href="{each.report}"' in page for each in audits)
    assert page.count("Too much comes from the crawl.") >= 3
    assert "0.710" in page
    assert "± 0.050" in page
    assert "4 audits of 2 models" in page


def test_an_index_of_nothing_says_so() -> None:
    assert "No audit was recorded yet." in index_page([])


def test_the_same_audits_give_the_same_page(audits: list[IndexedAudit]) -> None:
    assert index_page(audits) == index_page(list(audits))


def test_only_the_pages_own_script_may_run(audits: list[IndexedAudit]) -> None:
    awkward = replace(audits[3].past, model=f"</script>{SCRIPT}", method=f"\u2028{SCRIPT}\x00")
    page = index_page([*audits[:3], replace(audits[3], past=awkward)])
    assert "alert(1)</script>" not in page
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', page)
    assert policy is not None
    assert re.fullmatch(
        r"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-[\w+/]{43}='", policy[1]
    )
    data = re.search(r'<script type="application/json" id="audits">(.*?)</script>', page, re.DOTALL)
    assert data is not None
    assert set(json.loads(data[1])) == {each.past.audit_id for each in audits}


def test_charts_are_drawn_to_scale(audits: list[IndexedAudit]) -> None:
    digits = [each for each in audits if each.past.model == "digits"]
    sources = share_chart(digits, "source")
    assert sources is not None
    crawl = next(line for line in sources.lines if line.name == "crawl")
    zero, top = sources.ticks[0][0], sources.ticks[1][0]
    heights = [(zero - dot.y) / (zero - top) for dot in crawl.dots]
    assert heights == pytest.approx([0.2 / 0.8, 0.3 / 0.8, 0.6 / 0.8], abs=0.01)
    assert crawl.last == "60.0%"
    measured = fidelity_chart(digits)
    assert measured is not None
    dot = measured.lines[0].dots[0]
    assert (dot.low or 0) - (dot.high or 0) == pytest.approx(2 * 0.05 * (zero - top), abs=0.11)
    bars = findings_chart(digits).bars
    assert [(bar.severity, bar.height) for bar in bars[:1]] == [("low", pytest.approx(0.75 * (zero - top), abs=0.1))]
    assert all(LEFT <= bar.x <= WIDTH and 0 <= bar.y <= HEIGHT for bar in bars)


def test_what_was_never_measured_has_no_chart(audits: list[IndexedAudit]) -> None:
    assert fidelity_chart(audits[:1]) is None
    assert share_chart(audits, "author") is None
    assert "Not measured yet." in index_page(audits[:1])


def test_charts_of_a_long_history_draw_the_newest_audits_and_the_table_has_all() -> None:
    many = [audit("digits", number, 0.5, UNLICENSED) for number in range(1, MOST_DRAWN + 11)]
    page = index_page(many)
    assert len(rows_of(page)) == len(many)
    assert page.count('<rect class="high"') == MOST_DRAWN
    assert f"newest {MOST_DRAWN} audits" in page


def test_a_long_history_is_in_parts_that_stay_and_an_index_that_is_bounded() -> None:
    many = [audit("digits", number, 0.5, sequence=number).past for number in range(1, 1001)]
    for count in (1, 199, 399, 400, 599, 600, 1000):
        older, newest = index_parts(many[:count])
        assert [part.audit_ids for part in older] == [
            tuple(past.audit_id for past in many[start : start + 200]) for start in range(0, newest.first - 1, 200)
        ]
        assert newest.audit_ids == tuple(past.audit_id for past in many[newest.first - 1 : count])
        assert len(newest.audit_ids) < 400
        assert not older or len(newest.audit_ids) >= 200
    assert [part.name for part in index_parts(many[:600])[0]] == ["audits-1-200.html", "audits-201-400.html"]
    older, newest = index_parts([])
    assert (older, newest.audit_ids) == ([], ())


def test_the_index_keeps_the_newest_audit_of_a_model_that_is_audited_no_more(audits: list[IndexedAudit]) -> None:
    older, newest = index_parts([each.past for each in audits], 1)
    assert [part.first for part in older] == [1, 2, 3]
    assert newest.audit_ids == (audits[1].past.audit_id, audits[3].past.audit_id)


def test_pages_of_a_long_history_lead_to_each_other(audits: list[IndexedAudit]) -> None:
    older, newest = index_parts([each.past for each in audits], 2)
    page = index_page(audits[2:], newest, [(part, part.name) for part in older])
    assert '<a href="audits-1-2.html">1 to 2</a>' in page
    assert "4 audits of" in page
    page = index_page(audits[:2], older[0], (), "index.html")
    assert '<a href="index.html">The newest audits</a>' in page
    assert "<h1>Audits 1 to 2</h1>" in page
    assert "2 audits of 2 models" in page


def test_findings_come_go_and_stay_by_rule_and_subject() -> None:
    crawl = Finding("source", "high", "crawl 40%", evidence={"attribute": "source", "value": "crawl", "share": 0.4})
    more = replace(crawl, message="crawl 50%", evidence={**crawl.evidence, "share": 0.5})
    other = replace(crawl, evidence={"attribute": "source", "value": "forum"})
    gone = Finding("not-reproduced", "low", "gone", output_id="o1")
    changes = changed_findings([crawl, gone], [more, other])
    assert (changes.came, changes.went, changes.stayed) == ((other,), (gone,), (more,))


def test_shares_are_compared_the_largest_change_first() -> None:
    found = compared_shares([share("source", "a", 0.5), share("source", "b", 0.5)], [share("source", "a", 0.55)])
    assert [(each.value, round(each.change, 3)) for each in found] == [("b", -0.5), ("a", 0.05)]


def test_a_comparison_page_says_what_changed_and_runs_nothing(audits: list[IndexedAudit]) -> None:
    lines = [
        Compared("method", "method", "influence", SCRIPT, None, False),
        Compared("outputs", "audited", "10", "30", 20.0, False),
        Compared("share", "left out here", "1", "2", 1.0, False),
    ]
    finding = Finding("unlicensed-data", "high", f"Crawl {SCRIPT}")
    page = compare_page(audits[0], audits[3], lines, [], [finding])
    assert "<script" not in page
    assert escape(SCRIPT) in page
    assert "left out here" not in page
    assert "Came: 1" in page
    assert "+40.0%" in page
    assert "not measured" in page
    assert "0.640" in page


Open = Callable[[str], webdriver.Chrome]


@pytest.fixture
def show(browser: webdriver.Chrome, tmp_path: Path) -> Iterator[Open]:
    def open_page(html: str) -> webdriver.Chrome:
        path = tmp_path / "index.html"
        path.write_text(html, encoding="utf-8")
        browser.get_log("browser")
        browser.get(path.as_uri())
        return browser

    yield open_page
    browser.get("about:blank")


def shown_rows(chrome: webdriver.Chrome) -> list[str]:
    rows = chrome.find_elements(By.CSS_SELECTOR, "tr[data-audit]")
    return [row.get_attribute("data-audit") or "" for row in rows if row.is_displayed()]


@pytest.mark.browser
def test_the_index_searches_filters_and_compares_from_a_file(show: Open, audits: list[IndexedAudit]) -> None:
    chrome = show(index_page(audits))
    first, letters, second, third = (each.past.audit_id for each in audits)
    assert set(shown_rows(chrome)) == {first, letters, second, third}
    search = chrome.find_element(By.ID, "search")
    search.send_keys("EKFAC crawl")
    assert shown_rows(chrome) == [third]
    assert chrome.find_element(By.ID, "shown").text == "1 of 4 audits"
    search.clear()
    search.send_keys(letters[:12])
    assert shown_rows(chrome) == [letters]
    chrome.execute_script("arguments[0].value = ''; arguments[0].dispatchEvent(new Event('input'))", search)
    Select(chrome.find_element(By.ID, "model")).select_by_visible_text("digits")
    assert set(shown_rows(chrome)) == {first, second, third}
    Select(chrome.find_element(By.ID, "severity")).select_by_visible_text("high")
    assert set(shown_rows(chrome)) == {second, third}
    for audit_id in (third, second):
        chrome.find_element(By.CSS_SELECTOR, f"#audit-{audit_id} input").click()
    compared = chrome.find_element(By.ID, "comparison")
    assert compared.is_displayed()
    heads = [cell.text for cell in compared.find_elements(By.CSS_SELECTOR, "table:first-of-type thead th")]
    assert heads[1].startswith("digits, audit 2")
    assert "digits, audit 3" in heads[2]
    said = compared.text
    assert "0.710 ± 0.050" in said
    assert re.search(r"low · not-reproduced went 3 times; The checkpoint", said)
    assert re.search(r"support, source crawl 30\.0% 60\.0% \+30\.0%", said)
    links = [link.get_attribute("href") or "" for link in compared.find_elements(By.CSS_SELECTOR, ".compared-report")]
    assert [link.split("/")[-2] for link in links] == [second, third]
    chrome.find_element(By.CSS_SELECTOR, f"#audit-{second} input").click()
    assert not compared.is_displayed()
    assert chrome.get_log("browser") == []


@pytest.mark.browser
def test_the_index_works_in_a_sandboxed_frame_without_origin(show: Open, audits: list[IndexedAudit]) -> None:
    page = escape(index_page(audits), quote=True)
    chrome = show(
        f'<!DOCTYPE html><title>f</title><iframe sandbox="allow-scripts" width="1200" srcdoc="{page}"></iframe>'
    )
    chrome.switch_to.frame(chrome.find_element(By.TAG_NAME, "iframe"))
    try:
        chrome.find_element(By.ID, "search").send_keys("letters")
        assert chrome.find_element(By.ID, "shown").text == "1 of 4 audits"
    finally:
        chrome.switch_to.default_content()
    assert chrome.get_log("browser") == []


@pytest.mark.browser
@pytest.mark.parametrize("width", [1280, 400])
def test_the_index_reads_without_script_and_fits_its_window(
    show: Open, browser: webdriver.Chrome, audits: list[IndexedAudit], width: int
) -> None:
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        chrome = show(index_page(audits))
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
        assert not chrome.find_element(By.CSS_SELECTOR, ".controls").is_displayed()
        assert not chrome.find_element(By.CSS_SELECTOR, "tbody .pick").is_displayed()
        assert len(shown_rows(chrome)) == 4
        chrome.find_element(By.CSS_SELECTOR, "tr[data-audit] summary").click()
        assert "Too much comes from the crawl." in chrome.find_element(By.TAG_NAME, "main").text
        assert chrome.execute_script("return document.documentElement.scrollWidth") <= width
    finally:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
