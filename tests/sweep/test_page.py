"""The page that ``hsplugin sweep`` writes, in a real browser."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

import pytest

from hsplugin.sweep.encoders import ACCURACIES, COLUMNS, NESTED, in_words
from hsplugin.sweep.metrics import METRICS
from hsplugin.sweep.page import MATRIX, page
from hsplugin.sweep.report import agreements
from hsplugin.sweep.words import LOST
from tests.browser import chromium, column, complaints, drawn, hovered, requests

PUBLISHED = Path(__file__).parents[2] / "examples" / "results" / "sweep" / "sweep.csv"
WORDS = ("run", "method", "data", "backbone", *NESTED)
INTEGERS = ("seed", "epochs", "dim", "batch_size", "train_size")
# What each panel shows across and up, and the titles of the axes on the left and below.
PANELS = """
const figure = document.querySelectorAll('.plotly-graph-div')[1], layout = figure._fullLayout;
const titles = Object.keys(layout).filter(name => /^[xy]axis/.test(name))
  .map(name => layout[name].title.text).filter(text => text && !text.startsWith('Click'));
return [figure._fullData.map(trace => [trace.x, trace.y]), titles];
"""


def published() -> list[dict[str, Any]]:
    """The encoders of an earlier version, whose table lacks the metrics that came later."""

    def parsed(name: str, text: str) -> Any:
        if name in WORDS or text == "":
            return text or None
        return int(text) if name in INTEGERS else float(text)

    with PUBLISHED.open() as file:
        rows = [{name: parsed(name, row.get(name, "")) for name in COLUMNS}
                for row in csv.DictReader(file)]  # fmt: skip
    return [row | {name: math.nan for name in METRICS if row[name] is None} for row in rows]


ROWS = published()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with chromium(tmp_path_factory.mktemp("profile")) as driver:
        yield driver


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    path: Path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(page(ROWS, 3, agreements(ROWS), ["hsplugin", "sweep"]), encoding="utf-8")
    return path


def seen(row: dict[str, Any], name: str) -> Any:
    """A value as JSON has it, which knows no NaN."""
    return None if math.isnan(row[name]) else pytest.approx(row[name])


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 390])
def test_a_page_is_drawn_in_its_width_without_a_request_or_an_error(width, browser, written):
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        drawn(browser, written)
        assert requests(browser) == complaints(browser) == []
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width
        assert (
            f"{len(ROWS)} encoders (3 more failed)" in browser.find_element("tag name", "h1").text
        )
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@pytest.mark.slow
def test_a_hover_tells_the_encoder_in_words(browser, written):
    drawn(browser, written)
    said = hovered(browser, 0)  # its lines follow one another without a sign
    words = [f"{row['method']}{in_words(row)}".replace(", ", "") for row in ROWS]
    assert any(said.replace(", ", "").startswith(one) for one in words)
    assert "alignment" in said and "% on test images" in said


@pytest.mark.slow
def test_the_matrix_shows_each_two_of_the_metrics_that_are_chosen(browser, written):
    from selenium.webdriver.support.select import Select

    drawn(browser, written)
    shown = list(MATRIX)
    for slot, chosen in ((None, None), (0, "tolerance"), (2, "stable_rank"), (4, "knn")):
        if slot is not None:
            shown[slot] = chosen
            choice = browser.find_elements("css selector", "select")[1 + slot]
            Select(choice).select_by_visible_text({**ACCURACIES, **HEADINGS}[chosen])
        panels, titles = browser.execute_script(PANELS)
        pairs = [(a, b) for place, b in enumerate(shown) for a in shown[:place]]
        assert len(panels) == len(pairs) == 10
        for (x, y), names in zip(panels, pairs, strict=True):
            for values, name in ((x, names[0]), (y, names[1])):
                assert values == [seen(row, name) for row in ROWS]
        headings = [{**ACCURACIES, **HEADINGS}[name] for name in shown]
        assert sorted(titles) == sorted(headings[:-1] + headings[1:])


HEADINGS = {name: heading for name, (heading, _) in METRICS.items()}


@pytest.mark.slow
def test_the_tables_hold_the_coefficients_and_all_encoders_and_sort(browser, written):
    drawn(browser, written)
    tables = browser.find_elements("css selector", "table")
    found = agreements(ROWS)
    for table, statistic in ((tables[1], "spearman"), (tables[2], "kendall")):
        for accuracy, heading in ACCURACIES.items():
            values = [found[metric, accuracy, statistic].value for metric in METRICS]
            expected = ["" if math.isnan(value) else repr(value) for value in values]
            assert column(table, heading) == expected
    lowest = min(ROWS, key=lambda row: row["uniformity"])
    best = max(ROWS, key=lambda row: row["validation_linear"])
    lost = dict(zip(column(tables[4], LOST), column(tables[4], "linear, test"), strict=True))
    assert float(lost["uniformity"]) == pytest.approx(best["linear"] - lowest["linear"])
    encoders = tables[5]
    assert column(encoders, "linear, test") == [repr(row["linear"]) for row in ROWS]
    button = encoders.find_element("xpath", ".//button[text()='temperature']")
    button.send_keys("\ue007")  # Enter
    known = [repr(row["temperature"]) for row in ROWS if row["temperature"] is not None]
    blank = [""] * (len(ROWS) - len(known))
    assert column(encoders, "temperature") == sorted(known, key=float) + blank


@pytest.mark.slow
def test_one_encoder_makes_a_page_too(browser, tmp_path):
    path = tmp_path / "one.html"
    path.write_text(page(ROWS[:1], 0, agreements(ROWS[:1]), ["hsplugin"]), encoding="utf-8")
    drawn(browser, path)
    assert complaints(browser) == []
    assert "nan, nan" not in browser.find_element("tag name", "body").text
