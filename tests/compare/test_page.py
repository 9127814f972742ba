"""The page that ``hsplugin compare`` writes, in a real browser."""

from __future__ import annotations

import csv
import math
import re
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from hsplugin.compare.groups import ACCURACIES, Group, difference_rows
from hsplugin.compare.page import _plane, page
from tests.browser import chromium, column, complaints, drawn, hovered, requests

NASTY = '</script><script>window.hacked = 1</script><img src=x onerror="window.hacked = 1">'
FACTS = {
    **{"versions": {"torch": "2"}, "processor": "some", "cpu_cores": 2, "threads": 1},
    **{"gpu": None, "python": "3", "platform": "Linux"},
}


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with chromium(tmp_path_factory.mktemp("profile")) as driver:
        yield driver


def run(method: str, seed: int, **changes: Any) -> dict[str, Any]:
    return {
        **{"method": method, "seed": seed, "run": f"{method}-{seed}", "options": {}},
        **{"defaults": {}, "data": "digits", "train_size": None, "labels_per_class": 3},
        **{"epochs": 4, "batch_size": 8, "backbone": "small-conv", "parameters": 10},
        **{"precision": "32-true", "provenance": FACTS, "uniformity_optimum": -3.875},
        **{"alignment": 0.5, "uniformity": -2.0 - seed, "seconds": 1.5, "best_epoch": 4},
        **{"images_per_second": 10.0, "peak_memory_mib": 9.0},
        **{f"validation_{name}": 50.0 for name in ("knn", "linear")},
        **{name: 50.0 + seed for name in ACCURACIES},
        **{f"{name}_se": 1.25 for name in ACCURACIES},
        **changes,
    }


def measured(one: dict[str, Any], *epochs: int) -> list[dict[str, Any]]:
    return [
        {"run": one["run"], "epoch": epoch, "alignment": epoch / 10, "uniformity": -epoch / 10}
        | {"validation_knn": 10.0 * epoch}
        for epoch in epochs
    ]


def page_of(groups: list[Group], history: list[dict[str, Any]], **changes: Any) -> str:
    x = torch.nn.functional.normalize(torch.randn(20, 3), dim=1)
    asked: dict[str, Any] = {
        **{"pairs": {group.label: (x, -x) for group in groups}, "unfinished": []},
        **{"differences": difference_rows(groups), "candidates": [], "command": ["hsplugin"]},
    }
    return page(groups, history, **asked | changes)


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def table(driver: Any, heading: str) -> Any:
    return driver.find_element("xpath", f"//h2[text()='{heading}']/following::table[1]")


def points(driver: Any) -> list[tuple[float, float]]:
    """Where the plane draws its runs, group by group, in units of its axes."""
    return [
        (x, y)
        for x, y in driver.execute_script(
            "return document.querySelector('.plotly-graph-div').calcdata.flatMap("
            "trace => trace[0].trace.mode === 'markers' ? trace.map(p => [p.x, p.y]) : [])"
        )
    ]


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 390])
def test_a_page_is_drawn_in_its_width_without_a_request_or_an_error(width, browser, compared):
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        drawn(browser, compared / "report.html")
        assert requests(browser) == []
        assert complaints(browser) == []
        body = browser.find_element("tag name", "body").size["width"]
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width
        widths = [
            one.size["width"]
            for one in browser.find_elements("css selector", ".main-svg:first-child")
        ]
        assert len(widths) == 3 and max(widths) <= body
        if width == 1280:
            assert widths[1] == widths[2] < body / 2
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@pytest.mark.slow
def test_the_tables_hold_the_numbers_of_the_files_and_sort_as_numbers(browser, compared):
    drawn(browser, compared / "report.html")
    runs, results = table(browser, "Runs"), rows_of(compared / "results.csv")
    headings = {"alignment": "alignment", "knn": "kNN %", "best_linear": "linear % (best epoch)"}
    for name, heading in headings.items():
        assert column(runs, heading) == [row[name] for row in results]
    assert column(runs, "images per second")[0] == ""  # the untrained encoder has none
    button = runs.find_element("xpath", ".//button[text()='kNN %']")
    button.send_keys("\ue007")  # Enter
    assert column(runs, "kNN %") == sorted((row["knn"] for row in results), key=float)
    button.send_keys("\ue007")
    assert column(runs, "kNN %") == sorted((r["knn"] for r in results), key=float, reverse=True)
    differences = rows_of(compared / "differences.csv")
    found = column(table(browser, "Differences"), "standard error")
    assert found == [row["standard_error"] for row in differences]
    # The summary says in HTML what it says in Markdown.
    line = next(
        line for line in (compared / "summary.md").read_text().splitlines() if "| simclr" in line
    )
    cells = [cell.strip() for cell in line.split("|")[1:-1]]
    row = browser.find_element("xpath", "(//table)[1]//tr[td[1]='simclr']")
    assert [re.sub(r"\s+", " ", cell.text) for cell in row.find_elements("tag name", "td")] == cells


@pytest.mark.slow
def test_a_hover_tells_the_run_and_its_accuracy_with_its_error(browser, compared):
    drawn(browser, compared / "report.html")
    row = rows_of(compared / "results.csv")[-1]
    said = hovered(browser, -1)
    linear, error = float(row["linear"]), float(row["linear_se"])
    assert said.startswith("moco")
    assert "seed 0" in said and f"linear {linear:.1f} ± {error:.1f} %" in said
    assert f"alignment {float(row['alignment']):.3f}" in said and "epoch 3" in said


@pytest.mark.slow
def test_the_slider_moves_the_points_along_the_history_by_keyboard_and_plays(browser, compared):
    drawn(browser, compared / "report.html")
    results, history = rows_of(compared / "results.csv"), rows_of(compared / "history.csv")

    def expected(rows: list[dict[str, str]]) -> list[Any]:
        return [pytest.approx((float(r["alignment"]), float(r["uniformity"]))) for r in rows]

    assert points(browser) == expected(results)
    slider = browser.find_element("css selector", "input[type=range]")
    output = browser.find_element("css selector", "output")
    place = "return document.querySelectorAll('.points path')[2].getBoundingClientRect().x"
    before = browser.execute_script(place)
    slider.send_keys("\ue011")  # Home
    assert output.text == slider.get_attribute("aria-valuetext") == "epoch 0"
    assert points(browser) == expected([row for row in history if row["epoch"] == "0"])
    assert browser.execute_script(place) != before
    slider.send_keys("\ue014\ue014")  # Right
    assert output.text == "epoch 2"
    at = [row for row in history if row["epoch"] == "2" or row["method"] == "untrained"]
    assert points(browser) == expected(at)
    play = browser.find_element("xpath", "//button[text()='Play']")
    play.send_keys("\ue007")
    assert play.text == "Pause"
    for _ in range(50):
        if play.text == "Play":
            break
        time.sleep(0.2)
    assert output.text == "epoch 3" and points(browser) == expected(results)


@pytest.mark.slow
def test_the_colour_is_the_accuracy_that_is_chosen(browser, compared):
    from selenium.webdriver.support.select import Select

    drawn(browser, compared / "report.html")
    simclr = rows_of(compared / "results.csv")[1]
    said = (
        "const f = document.querySelector('.plotly-graph-div'); return [f._fullData.find("
        "t => t.name === 'simclr').marker.color, f._fullLayout.coloraxis.colorbar.title.text]"
    )
    assert browser.execute_script(said)[0] == [pytest.approx(float(simclr["linear"]))]
    Select(browser.find_element("css selector", "select")).select_by_visible_text(
        "kNN % on test images"
    )
    values, title = browser.execute_script(said)
    assert values == [pytest.approx(float(simclr["knn"]))] and title.startswith("kNN")


def test_between_its_measured_epochs_a_run_stays_and_before_the_first_it_is_not_drawn():
    often, late = run("simclr", 0), run("moco", 0)
    groups = [Group([often], {}), Group([late], {})]
    history = [*measured(often, 0, 1, 2, 4), *measured(late, 1, 3)]
    _, epochs, _ = _plane(groups, history)
    assert [step.label for step in epochs.steps] == [f"epoch {epoch}" for epoch in range(5)]
    x = [[changes["x"][0] for changes in step.traces.values()] for step in epochs.steps]
    assert x == [[0.0, None], [0.1, 0.1], [0.2, 0.1], [0.2, 0.3], [0.5, 0.5]]
    assert epochs.chosen == 4


@pytest.mark.slow
def test_text_of_others_is_shown_as_text(browser, tmp_path):
    one = run(NASTY, 0, options={NASTY: NASTY}, data=NASTY)
    candidate = {"method": NASTY, "options": {"a": NASTY}, "chosen": True}
    candidate |= dict.fromkeys(("validation_knn", "validation_linear", "mean"))
    made = page_of(
        [Group([one], {})],
        measured(one, 0, 4),
        candidates=[candidate],
        unfinished=[NASTY],
        command=["hsplugin", NASTY],
    )
    path = tmp_path / "nasty.html"
    path.write_text(made)
    drawn(browser, path)
    assert "window.hacked" in hovered(browser, 0)
    assert browser.execute_script("return [window.hacked, document.images.length]") == [None, 0]
    assert complaints(browser) == requests(browser) == []
    assert browser.find_element("tag name", "body").text.count(NASTY) > 8


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["one run", "earlier version", "diverged", "untrained alone"])
def test_what_is_missing_or_not_finite_leaves_the_rest(kind, browser, tmp_path):
    one, other = run("simclr", 0), run("simclr", 1)
    history = [*measured(one, 0, 4), *measured(other, 0, 4)]
    if kind == "one run":
        answers = {name: torch.rand(1, 9) for name in ACCURACIES}
        group, history = Group([one], answers), measured(one, 0, 4)
    elif kind == "earlier version":
        lost = ("knn_se", "linear_se", "best_knn_se", "best_linear_se", "images_per_second")
        group = Group([row | dict.fromkeys(lost) for row in (one, other)], {})
    elif kind == "diverged":
        nowhere = dict.fromkeys(("alignment", "uniformity"), math.nan)
        group = Group([row | nowhere for row in (one, other)], {})
        history = [row | nowhere for row in history]
    else:
        one = run("untrained", 0, images_per_second=None)
        group, history = Group([one], {}), measured(one, 0)
    path = tmp_path / "page.html"
    path.write_text(page_of([group], history))
    drawn(browser, path)
    assert complaints(browser) == []
    shown = column(browser.find_element("css selector", "table"), "alignment ↓")
    assert shown == ["" if kind == "diverged" else "0.5"]
    assert "nan ±" not in browser.find_element("tag name", "body").text
