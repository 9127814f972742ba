"""Embeddings in files of any origin: found by name, checked before allocation, streamed.

Readers never execute what a file holds (no pickle), never believe a header that the file's size
contradicts, and refuse archives that are packed far denser than embeddings can be.

A new format is one module with a function from a path to
:class:`~hsplugin.measure.readers.contents.Contents`, and its line in ``READERS``.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from hsplugin.errors import CommandError
from hsplugin.measure.readers.contents import Array, Contents, Wanted, one_line_errors
from hsplugin.measure.readers.csv import open_csv
from hsplugin.measure.readers.npy import open_npy, open_npz
from hsplugin.measure.readers.parquet import open_parquet
from hsplugin.measure.readers.tensors import open_pt, open_safetensors

__all__ = ["READERS", "Array", "find_array", "names_in"]

READERS: dict[str, Callable[[Path], Contents]] = {
    ".csv": open_csv,
    ".npy": open_npy,
    ".npz": open_npz,
    ".parquet": open_parquet,
    ".pt": open_pt,
    ".pth": open_pt,
    ".safetensors": open_safetensors,
}


def find_array(
    path: Path,
    key: str | None,
    *,
    dimensions: int,
    purpose: str,
    others: list[str] | None = None,
) -> Array:
    """Find the array called ``key`` in a file, or the only one that fits.

    Args:
        path: A file whose suffix is in ``READERS``.
        key: The array's name; for tables, column names or patterns such as ``x*``, separated by
            commas.
        dimensions: 2 for features, 1 for labels.
        purpose: What the array is for, for messages.
        others: Keys of arrays with another purpose, which are never picked without a key.

    Raises:
        CommandError: If none fits, more than one does, or the file is missing, empty or damaged.
        ImportError: If the format needs a package that is missing.
    """
    with one_line_errors(str(path)):
        return _open(path).pick(Wanted(key, dimensions, purpose, tuple(others or ())))


def names_in(path: Path) -> list[str]:
    """The names of all arrays or columns in a file; ``""`` is an array without a name.

    Raises:
        CommandError: If the file is missing, empty or damaged.
        ImportError: If the format needs a package that is missing.
    """
    with one_line_errors(str(path)):
        return _open(path).names()


def _open(path: Path) -> Contents:
    if not path.is_file():
        raise CommandError(f"{path}: no such file")
    if path.stat().st_size == 0:
        raise CommandError(f"{path}: is empty")
    suffix = path.suffix.lower()
    if suffix not in READERS:
        known = ", ".join(sorted(READERS))
        raise CommandError(f"{path}: unknown kind of file {suffix!r}; known are {known}")
    return READERS[suffix](path)
