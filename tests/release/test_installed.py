"""What pip has installed, seen from a folder without the sources."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from readme_renderer import markdown

import hsplugin

ROOT = Path(__file__).parents[2]
REPOSITORY = "https://github.com/hsplugin/hsplugin/blob/"
RAW = "https://raw.githubusercontent.com/hsplugin/hsplugin/"

if not any(importlib.metadata.distributions(name="hsplugin")):
    pytest.skip("hsplugin is not installed", allow_module_level=True)


def output(*command: object, cwd: Path) -> str:
    """What a command prints that must succeed."""
    done = subprocess.run([str(c) for c in command], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_version_is_the_same_everywhere(tmp_path: Path) -> None:
    installed = "import hsplugin; print(hsplugin.__version__)"
    command = Path(sys.executable).with_name("hsplugin")
    assert {
        importlib.metadata.version("hsplugin"),
        output(sys.executable, "-I", "-c", installed, cwd=tmp_path).strip(),
        output(command, "--version", cwd=tmp_path).removeprefix("hsplugin ").strip(),
    } == {hsplugin.__version__}


def test_every_package_of_the_repository_is_installed(tmp_path: Path) -> None:
    packages = {"hsplugin", *(path.name for path in (ROOT / "integrations").glob("[!_]*"))}
    find = (
        "import sys; from importlib.util import find_spec;"
        "print(*(name for name in sys.argv[1:] if not find_spec(name)))"
    )
    assert "hsplugin_lightly" in packages
    assert output(sys.executable, "-I", "-c", find, *packages, cwd=tmp_path).split() == []


def test_every_entry_point_can_be_loaded() -> None:
    points = importlib.metadata.distribution("hsplugin").entry_points
    assert {point.group for point in points} == {
        "console_scripts",
        "lightning.pytorch.callbacks_factory",
        "pytorch_lightning.callbacks_factory",
    }
    for point in points:
        assert callable(point.load())


class Links(HTMLParser):
    """The addresses of links and pictures on a page."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("a", "img"):
            self.found += [value or "" for name, value in attrs if name in ("href", "src")]


def test_links_and_pictures_of_the_description_work_on_pypi() -> None:
    html = markdown.render(importlib.metadata.metadata("hsplugin")["Description"])
    assert html is not None
    links = Links()
    links.feed(html)
    own = [link for link in links.found if link.startswith((REPOSITORY, RAW))]
    tag = f"v{importlib.metadata.version('hsplugin')}/"
    assert any(link.startswith(RAW) for link in own)
    for link in own:
        path = link.removeprefix(REPOSITORY).removeprefix(RAW)
        assert path.startswith(tag)
        assert (ROOT / path.removeprefix(tag).split("#")[0]).exists(), link
    # The renderer gives each heading a link to itself.
    others = [link for link in links.found if not link.startswith("#user-content-")]
    assert [link for link in others if not link.startswith("https://")] == []
