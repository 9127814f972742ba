"""A real browser for pages, and what it did while it showed one."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--window-size=1280,1000",
)


@contextmanager
def chromium(profile: Path) -> Iterator[Any]:
    """A driver of headless Chromium; the test is skipped where that is not installed."""
    from selenium import webdriver

    paths = shutil.which("chromium"), shutil.which("chromedriver")
    if not all(paths):
        pytest.skip("needs Chromium and its driver")
    options = webdriver.ChromeOptions()
    options.binary_location = str(paths[0])
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(str(paths[1])))
    try:
        driver.get("about:blank")
        requests(driver)  # of the page that the browser opens with
        yield driver
    finally:
        driver.quit()


def drawn(driver: Any, page: Path) -> None:
    """Open a page and wait until all its figures are drawn."""
    driver.get(page.as_uri())
    ready = "return [...document.querySelectorAll('.plotly-graph-div')].map(d => !!d._fullData)"
    state: list[bool] = []
    for _ in range(150):
        state = driver.execute_script(ready)
        if state and all(state):
            return
        time.sleep(0.2)
    pytest.fail(f"the figures are not drawn: {state}")


def hovered(driver: Any, number: int) -> str:
    """What the first figure says of one of its points that the pointer is moved to."""
    from selenium.webdriver.common.action_chains import ActionChains

    figure = driver.find_element("css selector", ".plotly-graph-div")
    point = figure.find_elements("css selector", ".points path")[number]
    driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", point)
    for _ in range(50):
        ActionChains(driver).move_by_offset(1, 1).move_to_element(point).perform()
        time.sleep(0.2)
        found = driver.find_elements("css selector", ".hoverlayer .hovertext")
        if found:
            return str(found[0].text)
    pytest.fail("the figure says nothing of the point")


def column(table: Any, heading: str) -> list[str]:
    """The values that a column of a table sorts by, from top to bottom."""
    heads = [head.text.strip() for head in table.find_elements("css selector", "th button")]
    place = heads.index(heading) + 1
    cells = table.find_elements("css selector", f"tbody td:nth-child({place})")
    return [str(cell.get_attribute("data-value")) for cell in cells]


def requests(driver: Any) -> list[str]:
    """The addresses that were asked for since the last call, but for files and data in the page."""
    found = []
    for entry in driver.get_log("performance"):
        message = json.loads(entry["message"])["message"]
        if message["method"] in ("Network.requestWillBeSent", "Network.webSocketCreated"):
            parameters = message["params"]
            found.append(parameters.get("request", parameters)["url"])
    return [url for url in found if not url.startswith(("file:", "data:", "blob:"))]


def complaints(driver: Any) -> list[str]:
    """Errors in the console since the last call, refused loads among them."""
    return [e["message"] for e in driver.get_log("browser") if e["level"] == "SEVERE"]
