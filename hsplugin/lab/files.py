"""Files that are either whole or absent, even if the process that writes them is killed.

Also the Markdown table that reports are made of.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

# Nobody writes one file for so long; the clocks of two machines may differ.
SECONDS_UNTIL_STALE = 24 * 3600.0


def write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Let ``write`` fill a file beside ``path``, then move it into place in one step.

    Args:
        path: The file to write.
        write: Called with a temporary path that has the suffix of ``path``.
    """
    # Named by machine and process, so that no two writers of a shared folder meet.
    writer = f"{socket.gethostname()}-{os.getpid()}"
    partial = path.with_name(f".{path.stem}.partial-{writer}{path.suffix}")
    try:
        write(partial)
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def remove_leftovers(folder: Path) -> None:
    """Remove partial files of processes that were killed while they wrote."""
    for leftover in folder.glob(".*.partial-*"):
        host, _, process = leftover.stem.rpartition(".partial-")[2].rpartition("-")
        with suppress(FileNotFoundError):
            old = time.time() - leftover.stat().st_mtime > SECONDS_UNTIL_STALE
            if not _running(process) if host == socket.gethostname() else old:
                leftover.unlink()


def _running(process: str) -> bool:
    try:
        os.kill(int(process), 0)
    except (ValueError, ProcessLookupError):
        return False
    except PermissionError:
        pass  # another user's process, but running
    return True


def machine_error(error: OSError, folder: Path) -> str:
    """What a full or unwritable disk means for the user, in one line."""
    if error.errno == errno.ENOSPC:
        return f"no space left on the disk of {folder}; free some and rerun to continue"
    return f"{error.filename or folder}: {error.strerror or error}; fix it and rerun to continue"


def write_text(path: Path, text: str) -> None:
    """Write text as UTF-8, atomically; what is no character, as in some file names, as escapes."""
    write_atomically(
        path, lambda partial: partial.write_text(text, "utf-8", errors="backslashreplace")
    )


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a mapping as JSON, atomically."""
    text = json.dumps(content, indent=1)
    write_atomically(path, lambda partial: partial.write_text(text + "\n"))


def read_json(path: Path) -> dict[str, Any]:
    """Read what `write_json` wrote.

    Raises:
        ValueError: The file holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(content, dict):
        raise ValueError(f"a {type(content).__name__} where a mapping belongs")
    return content


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows under a header, atomically; a row without a column leaves it empty."""
    import pandas as pd

    # As objects, because a column of integers and None would be written as floats; floats as
    # text, because NaN is a measurement ("nan") and None is none ("").
    table = pd.DataFrame(rows, dtype=object)
    table = table.map(lambda value: str(value) if isinstance(value, float) else value)
    write_atomically(path, lambda partial: table.to_csv(partial, index=False, lineterminator="\n"))


def write_torch(path: Path, content: Mapping[str, Any]) -> None:
    """Write tensors with torch.save, atomically."""
    write_atomically(path, lambda partial: torch.save(content, partial))


def read_torch(path: Path) -> dict[str, Any]:
    """Read what torch.save wrote of a mapping, without running any code that it holds.

    Raises:
        ValueError: The file is no such file, or not what was written, byte for byte.
    """
    try:
        # Torch itself does not compare the checksums that it writes.
        with zipfile.ZipFile(path) as archive:
            if broken := archive.testzip():
                raise ValueError(f"wrong checksum of {broken}")
        content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # of every kind, by what is damaged
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise ValueError(reason.split(". ")[0]) from None
    if not isinstance(content, dict):
        raise ValueError(f"a {type(content).__name__} where a mapping belongs")
    return content


def markdown_table(lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first line is the header, the first column is aligned left."""
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
