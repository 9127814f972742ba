"""Each notebook runs from a fresh kernel, and what is stored of it tells the story of its text."""

from __future__ import annotations

import os
import re
from collections.abc import Callable

import nbformat
import pytest
from nbformat import NotebookNode

from tests.examples import scripts

runner = scripts.load("notebooks/run")
LARGEST_FILE = 500_000
BADGE = "colab.research.google.com/github/hsplugin/hsplugin/blob/main/examples/notebooks"


def stored(name: str) -> NotebookNode:
    return nbformat.read(runner.FOLDER / f"{name}.ipynb", as_version=4)


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def outputs(notebook: NotebookNode) -> list[NotebookNode]:
    return [output for cell in code_cells(notebook) for output in cell.outputs]


def texts(notebook: NotebookNode) -> list[str]:
    """What a reader sees of each output that is not a picture."""
    found = []
    for output in outputs(notebook):
        data = output.get("data", {})
        found += [output.get("text", ""), *(data[kind] for kind in data if kind[:5] == "text/")]
    return found


def numbers(notebook: NotebookNode, start: str) -> list[float]:
    """The numbers of the only printed line that starts so."""
    lines = "\n".join(texts(notebook)).splitlines()
    line, *others = {line for line in lines if line.lstrip().startswith(start)}
    assert not others
    return [float(value) for value in re.findall(r"-?\d+\.\d+|-?\d+", line.partition(start)[2])]


def swap(notebook: NotebookNode) -> None:
    rows = ("NT-Xent  ", "align + uniform  ", "paper's weights  ", "untrained  ")
    theirs, ours, paper, untrained = (numbers(notebook, row) for row in rows)
    assert abs(ours[0] - theirs[0]) < 0.15 and abs(ours[1] - theirs[1]) < 0.2
    assert paper[0] > ours[0] + 0.15 and paper[1] < ours[1] - 0.3
    _, ratio_untrained, cosine, ratio = numbers(notebook, "1024  ")
    assert cosine > 0.999 and abs(ratio - 1) < 0.01 and abs(ratio_untrained - 1) < 0.1
    alone = [numbers(notebook, f"{term} alone  ")[2] for term in ("alignment", "uniformity")]
    assert max(alone) < min(theirs[2], ours[2], paper[2]) - 3 and untrained[2] < ours[2] - 3


def watch(notebook: NotebookNode) -> None:
    assert "bit-identical: True" in "\n".join(texts(notebook))
    [healthy], [collapsed] = (
        numbers(notebook, f"loss {w}  ") for w in ("with stop-gradient", "without")
    )
    assert collapsed < healthy - 0.1
    assert "monitor: collapse: uniformity is" in "\n".join(texts(notebook))
    rank, knn = numbers(notebook, "healthy     projection_head   RankMe")
    collapsed_rank, collapsed_knn = numbers(notebook, "collapsed   projection_head   RankMe")
    assert collapsed_rank < 8 < 12 < rank and collapsed_knn < 25 < 35 < knn
    assert numbers(notebook, "stopped after")[0] < 8


def measure(notebook: NotebookNode) -> None:
    uniform, half, point = (
        numbers(notebook, case) for case in ("uniform  ", "half the dimensions", "a single point")
    )
    assert uniform[0] == pytest.approx(-3.875, abs=0.01) and half[0] < -3.7
    assert uniform[2] > 60 and half[2] == pytest.approx(32, abs=0.5) and half[1] > 0.7
    assert point[0] > -0.01 and point[3] > 60
    pixels, paper, aligned = (
        numbers(notebook, name)
        for name in ("pixels        64", "weight_1      32", "weight_10     32")
    )
    assert paper[-1] > pixels[-1] + 0.05 and paper[-1] > aligned[-1] + 0.2
    assert paper[2] < pixels[2] and abs(aligned[1]) < 0.3


def compare(notebook: NotebookNode) -> None:
    *_, p_value = numbers(notebook, "align_uniform_tau - simclr")
    assert p_value > 0.05
    lost = {
        name: numbers(notebook, f"{name}  ")[0] for name in ("chance", "uniformity", "alignment")
    }
    both = numbers(notebook, "alignment + uniformity")[0]
    assert both < lost["chance"] < min(lost["uniformity"], lost["alignment"])


STORIES: dict[str, Callable[[NotebookNode], None]] = {
    story.__name__: story for story in (swap, watch, measure, compare)
}


def test_every_notebook_has_a_story() -> None:
    assert set(STORIES) == set(runner.NAMES)


@pytest.mark.parametrize("name", STORIES)
def test_what_is_stored_tells_the_story(name: str) -> None:
    STORIES[name](stored(name))


@pytest.mark.parametrize("name", STORIES)
def test_the_stored_notebook_is_that_of_one_run(name: str) -> None:
    notebook = stored(name)
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert notebook.metadata == runner.METADATA
    assert not any(cell.metadata for cell in cells)
    assert (runner.FOLDER / f"{name}.ipynb").stat().st_size < LARGEST_FILE


@pytest.mark.parametrize("name", STORIES)
def test_no_output_has_an_error_a_warning_or_a_path_of_the_machine(name: str) -> None:
    notebook = stored(name)
    assert any("image/png" in output.get("data", {}) for output in outputs(notebook))
    for output in outputs(notebook):
        assert output.output_type != "error" and output.get("name") != "stderr"
    for text in texts(notebook):
        assert not re.search(r"Warning|Traceback|command not found|\r", text)
        assert not re.search(r"(?<![\w.])/[a-zA-Z]\w*/\w|[A-Z]:\\", text), text


@pytest.mark.parametrize("name", STORIES)
def test_it_opens_in_colab_and_installs_only_what_is_missing(name: str) -> None:
    first, second, *_ = stored(name).cells
    assert f"{BADGE}/{name}.ipynb" in first.source
    start = r"try:\n    import hsplugin( .*)?\nexcept ImportError:\n    %pip install .*hsplugin\["
    assert re.match(start, second.source)


@pytest.mark.slow
@pytest.mark.parametrize("name", STORIES)
def test_it_runs_from_a_fresh_kernel_and_tells_the_same_story(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [str(scripts.ROOT), str(scripts.ROOT / "integrations"), os.environ.get("PYTHONPATH")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
    notebook = runner.executed(name)
    STORIES[name](notebook)
    assert [output.get("name") for output in outputs(notebook)].count("stderr") == 0
