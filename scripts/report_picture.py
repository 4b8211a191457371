"""Make a picture of a report: `python scripts/report_picture.py report.html report.png --width 1280 --height 1600`.

Without --height the picture is as tall as the page. Needs Chromium and chromedriver, and selenium from the test extra.
"""

from __future__ import annotations

import argparse
import base64
import shutil
import sys
import tempfile
from pathlib import Path

from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service

_TALLEST = 16_000
_ARGUMENTS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
)


def take_picture(page: Path, picture: Path, width: int, height: int | None, top: int = 0) -> None:
    """Write a PNG of `page` as a window of `width` pixels shows it, from `top` down by `height` or to the end."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        sys.exit("chromium and chromedriver are needed: apt-get install chromium chromium-driver")
    with tempfile.TemporaryDirectory(prefix="gradtrail-picture-", ignore_cleanup_errors=True) as profile:
        options = Options()
        options.binary_location = chromium
        for argument in (*_ARGUMENTS, f"--user-data-dir={profile}"):
            options.add_argument(argument)
        chrome = webdriver.Chrome(options=options, service=Service(executable_path=driver))
        try:
            metrics = {"width": width, "height": height or 900, "deviceScaleFactor": 1, "mobile": False}
            chrome.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
            chrome.get(page.resolve().as_uri())
            whole = int(chrome.execute_script("return document.documentElement.scrollHeight")) - top
            tall = min(height or whole, _TALLEST)
            clip = {"x": 0, "y": top, "width": width, "height": tall, "scale": 1}
            options_of_shot = {"format": "png", "captureBeyondViewport": True, "clip": clip}
            shot = chrome.execute_cdp_cmd("Page.captureScreenshot", options_of_shot)
        finally:
            chrome.quit()
    picture.write_bytes(base64.b64decode(shot["data"]))


def main() -> None:
    """Read the arguments and take one picture."""
    parser = argparse.ArgumentParser(description="Make a PNG picture of a gradtrail report.")
    parser.add_argument("page", type=Path, help="the report.html")
    parser.add_argument("picture", type=Path, help="the PNG to write")
    parser.add_argument("--width", type=int, default=1280)
    parser.add_argument("--height", type=int, default=None, help="in pixels; the whole page by default")
    parser.add_argument("--top", type=int, default=0, help="first row of the page, in pixels")
    arguments = parser.parse_args()
    take_picture(arguments.page, arguments.picture, arguments.width, arguments.height, arguments.top)
    print(f"{arguments.picture}: {arguments.width} pixels wide")


if __name__ == "__main__":
    main()
