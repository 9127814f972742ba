"""The page that ``hsplugin measure`` writes, in a real browser."""

import html
import time

import numpy as np
import pytest

from hsplugin.cli import main
from hsplugin.measure.comparison import as_text, compare
from hsplugin.measure.geometry import Options, measure
from hsplugin.measure.page import _distances, page
from hsplugin.page import Cell, Page, figure, shown
from hsplugin.page.controls import Control, Step
from tests.browser import chromium, complaints, drawn, requests
from tests.measure.files import RANDOM
from tests.measure.test_pairs import array_of

pytest.importorskip("plotly")
NASTY = '</script><script>window.hacked = 1</script><img src=x onerror="window.hacked = 1">'
X = RANDOM.normal(size=(300, 8))
CAMERA = "return JSON.stringify(document.querySelector('.js-plotly-plot')._fullLayout.scene.camera)"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with chromium(tmp_path_factory.mktemp("profile")) as driver:
        yield driver


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Pages of one file, of several, and of two sides, with a label and names that inject."""
    folder = tmp_path_factory.mktemp("pages")
    labels = np.array(["cat", NASTY, """<b>dog's "own"</b>"""])[np.arange(300) % 3]
    for number, name in enumerate(["plain", "<img src=x onerror=alert(1)>", "third"]):
        x = X * np.linspace(1, 0.2 + 0.3 * number, 8)
        np.savez(folder / f"{name}.npz", x=x, y=x + 0.2, label=labels)
    files = sorted(map(str, folder.glob("*.npz")))
    common = ["--key", "x", "--positive-key", "y", "--label-key", "label"]
    assert main(["measure", files[0], *common, "--html", str(folder / "one.html")]) == 0
    assert main(["measure", *files, *common, "--html", str(folder / "all.html")]) == 0
    sides = ["--key", "x", "--other-key", "y", "--fit-range", "1", "5"]
    assert main(["measure", files[0], *sides, "--html", str(folder / "sides.html")]) == 0
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", ["one", "all", "sides"])
def test_a_page_is_drawn_without_a_request_or_an_error(name, browser, written):
    drawn(browser, written / f"{name}.html")
    assert requests(browser) == []
    assert complaints(browser) == []
    assert browser.execute_script("return window.hacked") is None
    kinds = browser.execute_script(
        "return [...document.querySelectorAll('.plotly-graph-div')]"
        ".map(d => [...new Set(d._fullData.map(trace => trace.type))].join())"
    )
    assert kinds == ["scatter3d", "bar", "bar", "scatter"]


@pytest.mark.slow
def test_a_request_would_be_seen_and_the_policy_refuses_it(browser, written):
    ask = "fetch('http://127.0.0.1:9/x').catch(() => {})"
    browser.get("about:blank")
    browser.execute_script(ask)
    time.sleep(0.5)
    assert requests(browser) == ["http://127.0.0.1:9/x"]
    drawn(browser, written / "one.html")
    complaints(browser)
    browser.execute_script(ask)
    time.sleep(0.5)
    assert requests(browser) == []
    assert any("Content Security Policy" in message for message in complaints(browser))


@pytest.mark.slow
def test_the_sphere_turns_when_it_is_dragged(browser, written):
    from selenium.webdriver.common.action_chains import ActionChains

    drawn(browser, written / "one.html")
    scene = browser.find_element("css selector", ".gl-container canvas")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", scene)
    time.sleep(0.5)
    before = browser.execute_script(CAMERA)
    drag = ActionChains(browser).move_to_element(scene).click_and_hold()
    for _ in range(5):
        drag = drag.move_by_offset(20, 5)
    drag.release().perform()
    for _ in range(50):
        if browser.execute_script(CAMERA) != before:
            return
        time.sleep(0.2)
    pytest.fail(f"the camera stays where it is: {before}")


@pytest.mark.slow
def test_the_list_of_files_shows_one_sphere_at_a_time_by_keyboard(browser, written):
    drawn(browser, written / "all.html")
    visible = (
        "const figure = document.querySelector('.js-plotly-plot'); return [figure.data"
        ".filter(trace => trace.mode === 'markers').map(trace => trace.visible),"
        "figure._fullLayout.title.text]"
    )
    files = browser.find_element("css selector", "select")
    names = files.text.split("\n")
    for place, name in enumerate(names):
        shown_now, title = browser.execute_script(visible)
        assert shown_now == [owner == place for owner in range(3) for _ in range(3)]
        assert title.startswith(shown(name.strip()))
        files.send_keys("\ue015")  # Down
    assert len(names) == 3


@pytest.mark.slow
def test_a_table_sorts_on_a_click(browser, written):
    drawn(browser, written / "all.html")
    table = browser.find_element("css selector", "table")
    names = [head.text.split()[0] for head in table.find_elements("css selector", "th")]
    place = names.index("rankme")
    button = table.find_elements("css selector", "th button")[place]

    def values():
        cells = table.find_elements("css selector", f"tbody td:nth-child({place + 1})")
        return [float(cell.get_attribute("data-value")) for cell in cells]

    given = values()
    button.click()
    assert values() == sorted(given)
    button.click()
    assert values() == sorted(given, reverse=True)
    assert button.find_element("xpath", "..").get_attribute("aria-sort") == "descending"


@pytest.mark.slow
def test_labels_and_names_are_shown_as_text(browser, written):
    drawn(browser, written / "all.html")
    legend = browser.find_elements("css selector", ".legendtext")
    shown = [entry.text for entry in legend]
    assert """<b>dog's "own"</b>""" in shown
    assert any(text.startswith("</script><script>window.hacked") for text in shown)
    assert NASTY in browser.find_element("tag name", "body").text
    names = [cell.text for cell in browser.find_elements("css selector", "td:first-child")]
    assert any("<img src=x onerror=alert(1)>" in name for name in names)
    assert browser.execute_script("return window.hacked") is None


def test_a_page_holds_nothing_of_others_but_text():
    page = Page(NASTY)
    page.heading(NASTY)
    page.text(NASTY)
    page.facts([(NASTY, NASTY)])
    page.table([NASTY], [[NASTY], [Cell(1.0, NASTY)], [None], [float("nan")]])
    control = Control(NASTY, [Step(NASTY, {0: {"name": NASTY}}), Step("b", {})], slider=True)
    page.controlled(figure(title=shown(NASTY)), control, data={NASTY: [NASTY]})
    written = page.html()
    assert "<script>window.hacked" not in written
    assert "<img src=x" not in written
    assert written.count(html.escape(NASTY)) == 13


@pytest.mark.slow
def test_a_page_of_a_file_is_of_some_megabytes(written):
    size = (written / "one.html").stat().st_size
    assert 4e6 < size < 7e6


@pytest.mark.parametrize("rows", [np.ones((40, 3)), X[:9, :1], X[:2], np.zeros((5, 2))])
def test_pages_of_features_without_spread(rows, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", rows)
    assert main(["measure", "x.npy", "--positive", "x.npy", "--html", "x.html"]) == 0


@pytest.mark.slow
def test_a_long_name_hides_no_values(browser, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.savez("x.npz", x=X, label=np.array(["long" * 100, "b"])[np.arange(300) % 2])
    assert main(["measure", "x.npz", "--key", "x", "--html", "x.html"]) == 0
    drawn(browser, tmp_path / "x.html")
    table = browser.find_elements("css selector", "table")[-1]
    assert table.size["width"] <= browser.find_element("tag name", "body").size["width"]


def test_a_command_that_is_not_unicode_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["hsplugin", "measure", "bad\udcff.npy"])
    np.save("x.npy", X)
    assert main(["measure", "x.npy", "--html", "x.html"]) == 0
    assert r"bad\udcff.npy" in (tmp_path / "x.html").read_text(encoding="utf-8")


def test_distances_beyond_the_bins_are_not_drawn_as_none():
    options = Options(normalize=False, fit_range=(1, 5))
    geometries = [measure(array_of(s * X), array_of(s * X + s), None, options) for s in (0.1, 50)]
    near, far = compare(geometries, options)
    titles = [drawn.layout.title.text for drawn in _distances([near, far], options)]
    assert titles == ["Positive pairs nearer than 2", "All pairs of a sample nearer than 2"]
    assert _distances([far], options) == []


def test_a_page_tells_why_there_is_no_interval():
    options = Options(fit_range=(1, 5))
    few = measure(array_of(X[:40]), None, None, options)
    assert page(compare([few], options), options).count("from 80 rows on") >= 3
    assert as_text(compare([few, few], options), options, 200).count("from 80 rows on") >= 3


def test_a_page_that_cannot_be_written_is_an_error_of_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", X)
    assert main(["measure", "x.npy", "--html", "missing/x.html"]) == 2
    assert "cannot write" in capsys.readouterr().err
