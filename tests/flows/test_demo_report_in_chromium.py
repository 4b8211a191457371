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
    pictures = browser.execute_script(
        "return [...document.images].filter(i => i.alt.includes(arguments[0])).map(i => [i.naturalWidth, i.complete])",
        top.example_id,
    )
    assert pictures
    assert all(complete and width > 0 for width, complete in pictures)
    assert not browser.get_log("browser")
