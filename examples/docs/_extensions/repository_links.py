"""Links of a page to files beside the pages, which work on GitHub, made to work on the site."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx
from sphinx.util import logging

DOCS = Path(__file__).resolve().parents[1]
ROOT = DOCS.parents[1]
NOTEBOOKS = ROOT / "examples" / "notebooks"
REPOSITORY = "https://github.com/hsplugin/hsplugin"
# A link with a relative path, but no picture.
LINK = re.compile(r"(?<!!)(\[(?:[^\[\]]|!?\[[^\[\]]*\](?:\([^()]*\))?)*\])\(([\w./-]+)(#[\w-]*)?\)")


def on_site(page: str, target: str) -> str:
    """Where a relative link of a page leads on the site.

    Raises:
        ValueError: If there is no such file in the repository.
    """
    is_notebook = page.startswith("notebooks/")
    folder = NOTEBOOKS if is_notebook else (DOCS / page).parent
    path = (folder / target).resolve()
    if not path.exists() or not path.is_relative_to(ROOT):
        raise ValueError(f"{target} is no file of the repository")
    if path.is_relative_to(NOTEBOOKS) and path.suffix == ".ipynb":
        return f"/notebooks/{path.name}"
    if path.is_relative_to(DOCS) and path.suffix == ".md":
        return f"/{path.relative_to(DOCS).as_posix()}"
    kind = "tree" if path.is_dir() else "blob"
    return f"{REPOSITORY}/{kind}/main/{path.relative_to(ROOT).as_posix()}"


def rewrite(app: Sphinx, page: str, source: list[str]) -> None:
    """Replace the links of a page before it is parsed."""

    def replaced(match: re.Match[str]) -> str:
        text, target, anchor = match[1], match[2], match[3] or ""
        try:
            return f"{text}({on_site(page, target)}{anchor})"
        except ValueError as error:
            logging.getLogger(__name__).warning("%s", error, location=page)
            return match[0]

    source[0] = LINK.sub(replaced, source[0])


def setup(app: Sphinx) -> dict[str, Any]:
    """Register with Sphinx."""
    app.connect("source-read", rewrite)
    return {"parallel_read_safe": True}
