"""Embeddings in files of any origin: found by name, checked before allocation, streamed.

Readers never execute what a file holds, never believe a header that the file's size contradicts,
and refuse archives that are packed far denser than embeddings can be.

A new format is one module with a function from a path to
:class:`~hsplugin.readers.contents.Contents`, and its line in ``READERS``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from hsplugin.errors import CommandError
from hsplugin.readers.contents import (
    Array,
    Contents,
    Wanted,
    one_line_errors,
    printable,
)
from hsplugin.readers.delimited import open_text
from hsplugin.readers.folder import open_folder
from hsplugin.readers.hdf5 import open_hdf5
from hsplugin.readers.ipc import open_ipc
from hsplugin.readers.jsons import open_json, open_json_lines
from hsplugin.readers.npy import open_npy, open_npz
from hsplugin.readers.parquet import open_parquet
from hsplugin.readers.pool import POOLS
from hsplugin.readers.table import LABEL_NAMES
from hsplugin.readers.tensors import INDEX, open_bin, open_index, open_pt, open_safetensors
from hsplugin.readers.vecs import open_counted, open_vecs

__all__ = ["POOLS", "READERS", "Array", "find_array", "label_names", "names_in"]


def _refuse_pickle(path: Path) -> Contents:
    raise CommandError(
        f"{path}: is a pickle, which can execute anything when it is loaded; if you trust it, "
        f"convert it: x = pickle.load(open({path.name!r}, 'rb')); "
        f"np.save('features.npy', np.asarray(x))"
    )


def _refuse_packed(path: Path) -> Contents:
    raise CommandError(f"{path}: is an archive; unpack it first")


READERS: dict[str, Callable[[Path], Contents]] = {
    ".arrow": open_ipc,
    ".bin": open_bin,
    ".bvecs": open_vecs,
    ".ckpt": open_pt,
    ".csv": open_text,
    ".dat": open_text,
    ".fbin": open_counted,
    ".feather": open_ipc,
    ".fvecs": open_vecs,
    ".h5": open_hdf5,
    ".h5ad": open_hdf5,
    ".hdf5": open_hdf5,
    ".i8bin": open_counted,
    ".ipc": open_ipc,
    ".json": open_json,
    ".jsonl": open_json_lines,
    ".ndjson": open_json_lines,
    ".npy": open_npy,
    ".npz": open_npz,
    ".parquet": open_parquet,
    ".pt": open_pt,
    ".pth": open_pt,
    ".safetensors": open_safetensors,
    INDEX: open_index,
    ".tsv": open_text,
    ".txt": open_text,
    ".u8bin": open_counted,
    ".vec": open_text,
}
REFUSED: dict[str, Callable[[Path], Contents]] = {
    **dict.fromkeys((".pkl", ".pickle", ".joblib"), _refuse_pickle),
    **dict.fromkeys((".gz", ".bz2", ".xz", ".zst", ".zip", ".tar"), _refuse_packed),
}


def find_array(
    path: Path,
    key: str | None,
    *,
    dimensions: int,
    purpose: str,
    others: list[str] | None = None,
    pool: str | None = None,
) -> Array:
    """Find the array called ``key`` in a file or folder, or the only one that fits.

    Args:
        path: A file whose suffix is in ``READERS``, or a folder of such.
        key: The array's name; for tables, column names or patterns such as ``x*``, separated by
            commas.
        dimensions: 2 for features, 1 for labels.
        purpose: What the array is for, for messages.
        others: Keys of arrays with another purpose, which are never picked without a key.
        pool: How rows of more dimensions become vectors, one of ``POOLS``; None refuses them.

    Returns:
        The array; what its user should know of how it was found is in its ``notes``.

    Raises:
        CommandError: If none fits, more than one does, or the file is missing, empty or damaged.
        ImportError: If the format needs a package that is missing.
    """
    wanted = Wanted(key, dimensions, purpose, tuple(others or ()), pool)
    with one_line_errors(str(path)):
        array = _contents(path).pick(wanted)
    return replace(
        array,
        name=printable(array.name),
        notes=tuple(map(printable, array.notes)),
        read=_texts(array.read) if dimensions == 1 else array.read,
    )


def label_names(path: Path) -> list[str]:
    """The names in a file that are known to be those of labels, such as ``class``.

    Raises:
        CommandError: If the file is missing, empty or damaged.
    """
    with one_line_errors(str(path)):
        names = _contents(path).possible_labels()
    return [name for name in names if name.lower() in LABEL_NAMES]


def names_in(path: Path) -> list[str]:
    """The names of all arrays or columns in a file; ``""`` is an array without a name.

    Raises:
        CommandError: If the file is missing, empty or damaged.
        ImportError: If the format needs a package that is missing.
    """
    with one_line_errors(str(path)):
        return _contents(path).names()


def _contents(path: Path) -> Contents:
    if not path.exists():
        raise CommandError(f"{path}: no such file")
    status = path.stat()
    if path.is_file() and status.st_size == 0:
        raise CommandError(f"{path}: is empty")
    if not path.is_file() and not path.is_dir():
        raise CommandError(f"{path}: is neither a file nor a folder")
    return _opened(path, status.st_mtime_ns, status.st_size)


# Features, positives and labels are often in one file.
@lru_cache(maxsize=1)
def _opened(path: Path, changed: int, size: int) -> Contents:
    if path.is_dir():
        return open_folder(path, READERS)
    suffix = INDEX if path.name.endswith(INDEX) else path.suffix.lower()
    reader = {**READERS, **REFUSED}.get(suffix)
    if reader is None:
        known = ", ".join(sorted(READERS))
        raise CommandError(f"{path}: unknown kind of file {suffix!r}; known are {known}")
    return reader(path)


def _texts(
    read: Callable[[int], Iterator[np.ndarray]],
) -> Callable[[int], Iterator[np.ndarray]]:
    """Labels as numbers, booleans or text that any terminal can show."""

    def texts(rows: int) -> Iterator[np.ndarray]:
        for chunk in read(rows):
            if chunk.dtype.kind == "S":
                chunk = np.char.decode(chunk, "utf-8", "backslashreplace")
            if chunk.dtype.kind in "UO":
                values = [printable(str(value)) for value in chunk.tolist()]
                chunk = np.array(values, dtype=object).reshape(chunk.shape)
            yield chunk

    return texts
