"""Fixtures of the whole house: a real Chromium for whoever has to look at a page."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service

_CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome")
_QUIET = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@pytest.fixture(scope="session")
def browser() -> Iterator[webdriver.Chrome]:
    """One Chromium for the session. Without one, tests skip, or fail where GRADTRAIL_REQUIRE_BROWSER=1."""
    chromium = next((path for name in _CHROMIUM_NAMES if (path := shutil.which(name))), None)
    driver = shutil.which("chromedriver")
    if chromium is None or driver is None:
        missing = "chromium" if chromium is None else "chromedriver"
        if os.environ.get("GRADTRAIL_REQUIRE_BROWSER") == "1":
            pytest.fail(f"{missing} is not installed, and GRADTRAIL_REQUIRE_BROWSER=1 asks for it")
        pytest.skip(f"{missing} is not installed; set GRADTRAIL_REQUIRE_BROWSER=1 to fail here")
    with tempfile.TemporaryDirectory(prefix="gradtrail-chromium-", ignore_cleanup_errors=True) as profile:
        options = Options()
        options.binary_location = chromium
        for argument in (*_QUIET, f"--user-data-dir={Path(profile)}"):
            options.add_argument(argument)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        chrome = webdriver.Chrome(options=options, service=Service(executable_path=driver))
        chrome.set_page_load_timeout(60)
        try:
            yield chrome
        finally:
            chrome.quit()
