"""Files that are either whole or not there, whatever kills the process that writes them.

And the one kind of table that goes into them for people to read.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any


def write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Let ``write`` fill a file beside ``path``, then put it in place in one step.

    Args:
        path: Where the content belongs.
        write: Called with the temporary path, which keeps the suffix of ``path``.
    """
    partial = path.with_name(f".{path.stem}.partial{os.getpid()}{path.suffix}")
    try:
        write(partial)
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def remove_leftovers(folder: Path) -> None:
    """Remove what a process that was killed while it wrote has left beside its files."""
    for leftover in folder.glob(".*.partial*"):
        if not _running(leftover.stem.rpartition(".partial")[2]):
            leftover.unlink(missing_ok=True)


def _running(process: str) -> bool:
    try:
        os.kill(int(process), 0)
    except (ValueError, ProcessLookupError):
        return False
    except PermissionError:
        pass  # somebody else's, but running
    return True


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a mapping as JSON, atomically."""
    text = json.dumps(content, indent=1)
    write_atomically(path, lambda partial: partial.write_text(text + "\n"))


def read_json(path: Path) -> dict[str, Any]:
    """Read what `write_json` wrote."""
    content: dict[str, Any] = json.loads(path.read_text())
    return content


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows with the keys of the first as header, atomically."""
    buffer = io.StringIO(newline="")
    writer = csv.DictWriter(buffer, list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, lambda partial: partial.write_text(buffer.getvalue()))


def write_torch(path: Path, content: Mapping[str, Any]) -> None:
    """Write tensors with torch.save, atomically."""
    import torch

    write_atomically(path, lambda partial: torch.save(content, partial))


def markdown_table(lines: Sequence[Sequence[str]]) -> str:
    """A table whose first line is its heading and whose first column is aligned to the left."""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    rule = ["-" * widths[0]] + ["-" * (width - 1) + ":" for width in widths[1:]]
    return "\n".join(
        "| "
        + " | ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        + " |"
        for line in [lines[0], rule, *lines[1:]]
    )
