"""The commands that the documentation shows."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
FILE = re.compile(r"^```\w+\n# (\S+\.\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FENCE = re.compile(r"^```bash\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class Command(NamedTuple):
    """A command and where it stands."""

    page: Path
    line: int
    text: str

    @property
    def place(self) -> str:
        """Page and line."""
        return f"{self.page.name}:{self.line}"


def pages() -> list[Path]:
    """The README and the pages of the documentation."""
    return [ROOT / "README.md", *sorted((ROOT / "examples" / "docs").rglob("*.md"))]


def commands_of(page: Path) -> Iterator[Command]:
    """The commands of a page's ``bash`` blocks; one that goes on after a backslash is joined."""
    text = page.read_text(encoding="utf-8")
    for block in FENCE.finditer(text):
        begun, parts = text.count("\n", 0, block.start(1)) + 1, list[str]()
        for number, line in enumerate(block[1].splitlines(), begun):
            parts.append(line.strip().removesuffix("\\").strip())
            if line.endswith("\\"):
                continue
            joined = " ".join(parts)
            if joined and not joined.startswith("#"):
                yield Command(page, number - len(parts) + 1, joined)
            parts = []


def files_of(page: Path) -> list[tuple[str, str]]:
    """Names and texts of the files that a page shows: blocks that begin with ``# NAME.yaml``."""
    return [(name, text) for name, text in FILE.findall(page.read_text(encoding="utf-8"))]
