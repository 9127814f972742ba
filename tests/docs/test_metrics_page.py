"""The catalogue of metrics has every metric, and its numbers are those of its script."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from hsplugin.metrics import METRICS, OF_TWO_ENCODERS
from tests.examples import scripts

PAGE = Path(__file__).parents[2] / "examples" / "docs" / "metrics.md"
# k-means may end in other clusters, and a ratio with noise differ, where sums round otherwise.
ROUNDING = 0.02


def rows(text: str) -> dict[str, list[str]]:
    """The table of measured examples: metric -> cells."""
    lines = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in text.splitlines()
        if line.startswith("| ")
    ]
    start = next(number for number, cells in enumerate(lines) if cells[0] == "metric")
    return {cells[0]: cells[1:] for cells in [lines[start], *lines[start + 2 :]]}


def test_every_metric_has_a_section_under_its_title() -> None:
    sections = re.findall(r"^## (.*)\n\n```\{declared\} metric (\w+)\n```", PAGE.read_text(), re.M)
    table = {**METRICS, **OF_TWO_ENCODERS}
    assert sections == [(kind.title, name) for name, kind in table.items()]


@pytest.mark.slow
def test_the_measured_examples_are_what_the_script_prints() -> None:
    written, printed = rows(PAGE.read_text()), rows(scripts.run("metrics_catalogue"))
    assert written.keys() == printed.keys() == {"metric", *METRICS}
    assert written.pop("metric") == printed.pop("metric")
    for name, cells in written.items():
        expected = [float(cell) for cell in printed[name]]
        found = [float(cell) for cell in cells]
        assert found == pytest.approx(expected, rel=ROUNDING, abs=0.002, nan_ok=True), name
