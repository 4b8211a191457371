from __future__ import annotations

import base64
import importlib.util
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from html import escape
from io import BytesIO
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement

from gradtrail.nouns import Preview
from gradtrail.reports.model import AuditReport
from gradtrail.reports.render import render_html

pytestmark = pytest.mark.browser
Show = Callable[[str, int], webdriver.Chrome]


@pytest.fixture
def show(browser: webdriver.Chrome, tmp_path: Path) -> Iterator[Show]:
    def open_page(html: str, width: int) -> webdriver.Chrome:
        path = tmp_path / "page.html"
        path.write_text(html, encoding="utf-8")
        metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        browser.get_log("browser")
        browser.get(path.as_uri())
        return browser

    yield open_page
    browser.get("about:blank")
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def awkward(report: AuditReport, script_text: str, long_example_id: str) -> AuditReport:
    """The sample with unbroken words, scripts and all three kinds of preview where users may put them."""
    unbroken = "a" * 300
    first, second, third, fourth = report.outputs
    text = Preview("text", text=f"{script_text} {unbroken} " * 3)
    row = Preview("row", row={"field" * 20: unbroken, script_text: script_text})
    first = replace(first, proponents=tuple(replace(card, preview=text) for card in first.proponents))
    second = replace(
        second,
        preview=row,
        result=replace(second.result, prediction=f"{script_text} {unbroken}"),
        proponents=tuple(replace(c, preview=row, attributes={"licence": unbroken}) for c in second.proponents),
    )
    third = replace(third, opponents=(replace(third.opponents[0], example_id=long_example_id),))
    return replace(
        report,
        title=f"Audit of {unbroken} {script_text}",
        outputs=(first, second, third, fourth),
        audit=replace(report.audit, parameters={"options": unbroken, unbroken: 1}),
        findings=(*report.findings, replace(report.findings[0], message=unbroken, rule=unbroken)),
    )


@pytest.mark.parametrize("width", [1280, 820, 400])
@pytest.mark.parametrize("kind", ["sample", "awkward", "redacted", "measured"])
def test_nothing_runs_nothing_fails_and_the_page_fits_its_window(
    show: Show,
    sample_report: AuditReport,
    script_text: str,
    long_example_id: str,
    measured_fidelity: Callable,
    kind: str,
    width: int,
) -> None:
    report = {
        "sample": lambda: sample_report,
        "awkward": lambda: awkward(sample_report, script_text, long_example_id),
        "redacted": lambda: replace(sample_report, preview_mode="redacted"),
        "measured": lambda: replace(sample_report, trust=replace(sample_report.trust, fidelity=measured_fidelity())),
    }[kind]()
    chrome = show(render_html(report), width)
    chrome.execute_script("for (const d of document.querySelectorAll('details')) d.open = true")
    assert chrome.execute_script("return document.documentElement.scrollWidth") <= width
    assert chrome.execute_script("return document.scripts.length") == 0
    assert chrome.execute_script("return performance.getEntriesByType('resource').length") == 0
    assert chrome.get_log("browser") == []


_LOOSE_MARKS = """
const loose = [];
for (const element of document.querySelectorAll("body *"))
  for (const mark of ["::before", "::after"]) {
    const style = getComputedStyle(element, mark);
    if (style.content === "none" || style.content === "normal" || style.position !== "absolute") continue;
    let box = element;
    while (box !== document.body && getComputedStyle(box).position === "static") box = box.parentElement;
    if (box === document.body) loose.push(element.outerHTML.slice(0, 120));
  }
return loose"""


@pytest.mark.parametrize("width", [1280, 400])
def test_what_the_style_sheet_draws_stays_in_the_box_that_it_belongs_to(
    show: Show, sample_report: AuditReport, width: int
) -> None:
    chrome = show(render_html(sample_report), width)
    chrome.execute_script("for (const d of document.querySelectorAll('details')) d.open = true")
    assert chrome.execute_script(_LOOSE_MARKS) == []


def test_the_top_proponent_of_each_output_is_displayed_crisply(show: Show, sample_report: AuditReport) -> None:
    chrome = show(render_html(sample_report), 1280)
    outputs = chrome.find_elements(By.CSS_SELECTOR, "details.output")
    assert len(outputs) == 4
    picture = outputs[0].find_element(By.CSS_SELECTOR, ".proponent.cards .picture")
    assert picture.is_displayed()
    assert picture.size["width"] == picture.size["height"] >= 64
    assert picture.value_of_css_property("image-rendering") == "pixelated"
    top = sample_report.outputs[0].proponents[0]
    assert top.preview is not None
    assert seen(chrome, picture) == pixels(top.preview.png)
    assert top.example_id in outputs[0].text
    widths = chrome.execute_async_script(_WIDTHS_OF_PICTURES)
    assert len(widths) > 40
    assert set(widths) == {8}


def pixels(png: bytes) -> list[int]:
    """The grey levels of a picture, row by row."""
    return list(Image.open(BytesIO(png)).convert("L").tobytes())


def seen(chrome: webdriver.Chrome, picture: WebElement) -> list[int]:
    """The grey level in the middle of each of the 8 × 8 squares of a picture, as the window shows it."""
    chrome.execute_script("arguments[0].scrollIntoView({block: 'center'})", picture)
    shot = Image.open(BytesIO(picture.screenshot_as_png)).convert("L")
    step = shot.width / 8
    return [shot.getpixel((int((x + 0.5) * step), int((y + 0.5) * step))) for y in range(8) for x in range(8)]


# The natural width of what the style sheet gives each picture to show; 0 where it is no picture.
_WIDTHS_OF_PICTURES = """
const done = arguments[0];
const width = element => new Promise(said => {
  const image = new Image();
  image.onload = () => said(image.naturalWidth);
  image.onerror = () => said(0);
  image.src = getComputedStyle(element).backgroundImage.slice(5, -2);
});
Promise.all([...document.querySelectorAll('.picture')].map(width)).then(done);
"""


def test_the_page_renders_in_a_sandboxed_frame_without_origin(show: Show, sample_report: AuditReport) -> None:
    page = escape(render_html(sample_report), quote=True)
    chrome = show(f'<!DOCTYPE html><title>frame</title><iframe sandbox="allow-scripts" srcdoc="{page}"></iframe>', 1280)
    chrome.switch_to.frame(chrome.find_element(By.TAG_NAME, "iframe"))
    try:
        assert chrome.find_element(By.TAG_NAME, "h1").text == sample_report.title
        assert set(chrome.execute_async_script(_WIDTHS_OF_PICTURES)) == {8}
        assert chrome.execute_script("return self.origin") == "null"
    finally:
        chrome.switch_to.default_content()
    assert chrome.get_log("browser") == []


def test_an_output_opens_and_closes_without_any_script(show: Show, sample_report: AuditReport) -> None:
    chrome = show(render_html(sample_report), 1280)
    last = chrome.find_elements(By.CSS_SELECTOR, "details.output")[-1]
    assert not last.find_element(By.CSS_SELECTOR, ".lineage").is_displayed()
    summary = last.find_element(By.TAG_NAME, "summary")
    chrome.execute_script("arguments[0].scrollIntoView({block: 'center'})", summary)
    summary.click()
    assert last.find_element(By.CSS_SELECTOR, ".lineage").is_displayed()


def test_a_printed_report_shows_closed_outputs_too(show: Show, sample_report: AuditReport) -> None:
    chrome = show(render_html(sample_report), 1280)
    closed = chrome.find_elements(By.CSS_SELECTOR, "details.output:not([open]) .lineage")
    assert closed
    hidden = "return !arguments[0].checkVisibility({contentVisibilityAuto: true})"
    assert all(chrome.execute_script(hidden, element) for element in closed)
    chrome.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    try:
        shown = "return arguments[0].checkVisibility() && arguments[0].getBoundingClientRect().height > 0"
        assert all(chrome.execute_script(shown, element) for element in closed)
    finally:
        chrome.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
    printed = base64.b64decode(chrome.execute_cdp_cmd("Page.printToPDF", {})["data"])
    assert printed.startswith(b"%PDF")


def test_text_has_the_contrast_that_accessibility_asks_for(show: Show, sample_report: AuditReport) -> None:
    chrome = show(render_html(sample_report), 1280)
    assert chrome.execute_script(_LOWEST_CONTRAST) >= 4.5


_LOWEST_CONTRAST = """
const luminance = ([r, g, b]) => [r, g, b].map(c => c / 255)
  .map(c => c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
  .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
const numbers = text => text.match(/[\\d.]+/g).map(Number);
const behind = element => {
  for (let e = element; e; e = e.parentElement) {
    const c = numbers(getComputedStyle(e).backgroundColor);
    if (c.length === 3 || c[3] > 0) return c;
  }
  return [255, 255, 255];
};
let lowest = 21;
for (const element of document.querySelectorAll('main *, footer *')) {
  const own = [...element.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
  if (!own || !element.checkVisibility()) continue;
  const pair = [luminance(numbers(getComputedStyle(element).color)), luminance(behind(element))].sort((a, b) => b - a);
  lowest = Math.min(lowest, (pair[0] + 0.05) / (pair[1] + 0.05));
}
return lowest;
"""


@pytest.fixture
def picture_script() -> ModuleType:
    path = Path(__file__).parents[2] / "scripts" / "report_picture.py"
    spec = importlib.util.spec_from_file_location("report_picture", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_picture_script_takes_a_picture_of_a_report(
    browser: webdriver.Chrome,
    picture_script: ModuleType,
    sample_report: AuditReport,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    page, target = tmp_path / "report.html", tmp_path / "report.png"
    page.write_text(render_html(sample_report), encoding="utf-8")
    arguments = ["report_picture", str(page), str(target), "--width", "700", "--height", "500"]
    monkeypatch.setattr(sys, "argv", arguments)
    picture_script.main()
    shot = Image.open(BytesIO(target.read_bytes()))
    assert shot.size == (700, 500)
    assert len(shot.convert("RGB").getcolors(1 << 20) or []) > 50
