"""Relative links of README and pages lead to files, and to headings, where GitHub shows them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytest.importorskip("myst_parser")
from markdown_it import MarkdownIt
from mdit_py_plugins.anchors import anchors_plugin

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "examples" / "docs"
PAGES = [ROOT / "README.md", *DOCS.glob("*.md"), *DOCS.glob("api/*.md")]


def links(page: Path) -> list[str]:
    """Where the links and pictures of a page lead, but for other sites."""
    found = []
    for block in MarkdownIt("commonmark").enable("table").parse(page.read_text()):
        for token in block.children or []:
            target = token.attrGet("href") or token.attrGet("src")
            if target and not re.match(r"\w+:", str(target)):
                found.append(str(target))
    return found


def headings(page: Path) -> set[str]:
    """The anchors that GitHub gives to the headings of a page."""
    parser = MarkdownIt("commonmark").use(anchors_plugin, max_level=6)
    tokens = parser.parse(page.read_text())
    return {str(t.attrGet("id")) for t in tokens if t.type == "heading_open"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    broken = []
    for link in links(page):
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        if not target.exists() or (
            anchor and target.suffix == ".md" and anchor not in headings(target)
        ):
            broken.append(link)
    assert broken == []
