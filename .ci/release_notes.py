"""Print a version's section of the changelog: ``python .ci/release_notes.py v0.1.0``.

Fails if the tag is not the version of the sources, or if the changelog has no text for it.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def notes(changelog: str, version: str) -> str:
    """The text below ``## VERSION - DATE``, up to the next version."""
    for section in re.split(r"^## ", changelog, flags=re.MULTILINE)[1:]:
        heading, _, text = section.partition("\n")
        if re.fullmatch(rf"{re.escape(version)} - \d{{4}}-\d\d-\d\d", heading) and text.strip():
            return text.strip()
    raise SystemExit(f"the changelog has no section {version} - YYYY-MM-DD")


def main(tag: str) -> None:
    """Print the notes of the version that a tag names."""
    sources = (ROOT / "hsplugin" / "__init__.py").read_text()
    found = re.search(r'^__version__ = "(.+)"$', sources, flags=re.MULTILINE)
    version = found[1] if found else None
    if tag != f"v{version}":
        raise SystemExit(f"the tag is {tag}, but hsplugin.__version__ is {version}")
    print(notes((ROOT / "examples" / "docs" / "changelog.md").read_text(), tag[1:]))


if __name__ == "__main__":
    main(sys.argv[1])
