"""The notes of a release are the changelog's section, and a wrong tag makes none."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import hsplugin

SCRIPT = Path(__file__).parents[2] / ".ci" / "release_notes.py"
CHANGELOG = """# Changelog

## Unreleased

## 0.10.0 - 2027-02-01

### Added
- Ten.

## 0.1.0 - 2027-01-01

One.
"""


def run(root: Path, tag: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, root / ".ci" / SCRIPT.name, tag], capture_output=True, text=True
    )


@pytest.fixture
def root(tmp_path: Path) -> Path:
    files = {
        ".ci/release_notes.py": SCRIPT.read_text(),
        "hsplugin/__init__.py": '"""Docs."""\n__version__ = "0.10.0"\n',
        "examples/docs/changelog.md": CHANGELOG,
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def test_the_notes_are_the_section_of_the_version(root: Path) -> None:
    assert run(root, "v0.10.0").stdout == "### Added\n- Ten.\n"


@pytest.mark.parametrize("tag", ["v0.1.0", "0.10.0", "v0.10.1"])
def test_a_tag_of_another_version_makes_no_release(root: Path, tag: str) -> None:
    done = run(root, tag)
    assert done.returncode != 0
    assert not done.stdout and "hsplugin.__version__ is 0.10.0" in done.stderr


@pytest.mark.parametrize(
    "section",
    ["", "## 0.10.0 - 2027-02-01\n\n## 0.9.0\n\nNine.\n", "## 0.10.0 - unreleased\n\nTen.\n"],
)
def test_a_version_without_notes_makes_no_release(root: Path, section: str) -> None:
    (root / "examples/docs/changelog.md").write_text("# Changelog\n\n" + section)
    done = run(root, "v0.10.0")
    assert done.returncode != 0 and "no section 0.10.0" in done.stderr


def test_the_changelog_has_notes_for_this_version() -> None:
    done = run(SCRIPT.parents[1], f"v{hsplugin.__version__}")
    assert done.returncode == 0, done.stderr
