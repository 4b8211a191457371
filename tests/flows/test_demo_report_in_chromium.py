"""The demo's report as an auditor sees it."""

import pytest

from gradtrail.lineage.read import queries


@pytest.mark.browser
def test_chromium_shows_the_top_proponents_picture_without_console_errors(demo, browser):
    with demo.workspace.ledger().read() as connection:
        details = queries.audit_details(connection, queries.audits(connection, "digits/1")[0].audit_id)
    browser.get_log("browser")
    browser.get((demo.workspace.reports / details.audit.audit_id / "report.html").as_uri())
    top = min((i for i in details.influences if i.side == "proponent"), key=lambda i: i.rank)
    pictures = browser.execute_async_script(_WIDTHS, top.example_id)
    assert pictures
    assert all(width > 0 for width in pictures)
    assert not browser.get_log("browser")


_WIDTHS = """
const [example, done] = arguments;
const width = element => new Promise(said => {
  const image = new Image();
  image.onload = () => said(image.naturalWidth);
  image.onerror = () => said(0);
  image.src = getComputedStyle(element).backgroundImage.slice(5, -2);
});
const shown = [...document.querySelectorAll('.picture')].filter(each => each.ariaLabel?.includes(example));
Promise.all(shown.map(width)).then(done);
"""
