"""The site builds without a warning, and has an entry for every public name and every flag."""

from __future__ import annotations

import argparse
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("sphinx")
from sphinx.util.inventory import InventoryFile

from hsplugin import cli
from tests.test_completion import PACKAGES

pytestmark = pytest.mark.slow
DOCS = Path(__file__).parents[2] / "examples" / "docs"
MODULES = {"hsplugin.metrics", "hsplugin.metrics.functional"}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built where every broken role, reference and link is an error."""
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", str(DOCS), str(out)]
    built = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert built.returncode == 0, built.stderr
    return out


def test_every_public_name_has_an_entry(site: Path) -> None:
    inventory = InventoryFile.loads((site / "objects.inv").read_bytes(), uri="").data
    entries = {name for kind, found in inventory.items() if kind[:3] == "py:" for name in found}
    names = {f"{m}.{name}" for m in PACKAGES for name in importlib.import_module(m).__all__}
    assert names - entries == set()
    assert entries & MODULES == MODULES


def test_every_flag_has_an_entry(site: Path) -> None:
    page = (site / "commands.html").read_text()
    subparsers = [a for a in cli._parser()._actions if isinstance(a, argparse._SubParsersAction)]
    flags = {
        f"hsplugin-{command}-{flag}"
        for command, parser in subparsers[0].choices.items()
        for action in parser._actions
        for flag in action.option_strings
    }
    assert {flag for flag in flags if f'id="{flag}"' not in page} == set()
    assert len(flags) > 60


def test_a_formula_reaches_the_page_as_one(site: Path) -> None:
    assert r"w_a \frac1N \sum_i" in (site / "api" / "hsplugin.html").read_text()


def test_links_into_the_repository_lead_to_github_and_pages_to_pages(site: Path) -> None:
    page = (site / "adding.html").read_text()
    assert 'href="https://github.com/hsplugin/hsplugin/blob/main/hsplugin/metrics/nesum.py"' in page
    assert 'href="metrics.html"' in page
