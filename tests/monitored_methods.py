"""The table of what the monitor measures of each method by default, which tests keep true."""

from __future__ import annotations

import os
import re
from pathlib import Path

TABLE = Path(__file__).resolve().parents[1] / "examples" / "docs" / "monitored-methods.md"
# If set, the tests write what they find instead of comparing it.
REWRITE = "HSPLUGIN_REWRITE_TABLE"

ONE_VIEW = "one view, so no alignment"
NOTHING = "nothing"


def tokens(measured: str) -> str:
    """The remark on a method that has nothing but tokens."""
    return f'tokens; with `pool="mean"`, {measured}'


def methods(section: str) -> list[str]:
    """The methods that a section of the table lists."""
    return [row.split(" | ")[0].removeprefix("| ").strip(" |") for row in _rows(section)]


def check(section: str, method: str, measured: str, remark: str = "") -> None:
    """Compare what was found of a method with its row, or write it there."""
    cells = [method, *(re.sub(r"(?<!\w)'([^']+)'", r"`\1`", cell) for cell in (measured, remark))]
    found = f"| {' | '.join(cells)} |".replace("|  |", "| |")
    [listed] = [row for row in _rows(section) if row.startswith(f"| {method} |")]
    if os.environ.get(REWRITE):
        before, heading, after = TABLE.read_text().partition(f"## {section}\n")
        TABLE.write_text(before + heading + after.replace(listed, found, 1))
    else:
        assert found == listed, f"{found}\n{listed}"


def _rows(section: str) -> list[str]:
    _, found, after = TABLE.read_text().partition(f"## {section}\n")
    assert found, f"{TABLE.name} has no section {section!r}"
    lines = [line for line in after.partition("\n## ")[0].splitlines() if line.startswith("|")]
    return lines[2:]
