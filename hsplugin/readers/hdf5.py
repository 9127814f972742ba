"""Embeddings in HDF5 files, by h5py."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from hsplugin.checks import listed
from hsplugin.errors import CommandError
from hsplugin.readers.arrays import Arrays
from hsplugin.readers.contents import Array, check_packing, missing_package
from hsplugin.readers.table import family

BLOCK = re.compile(r"(^|/)block\d+_values$")
MOST_DATASETS = 10**5
LARGEST_CHUNK = 2**30


def open_hdf5(path: Path) -> Arrays:
    """Open the datasets of an HDF5 file, each called by its path such as ``group/x``.

    Links to other files are not followed.

    Raises:
        CommandError: If it holds none.
        ImportError: If h5py is missing.
    """
    try:
        import h5py
    except ImportError as error:
        raise missing_package(path.suffix, "h5py", error) from error
    arrays: dict[str, Array] = {}
    unusable: dict[str, str] = {}
    with h5py.File(path, "r") as file:

        def visit(name: str, held: Any) -> bool | None:
            if isinstance(held, h5py.Dataset) and held.shape:
                problem = _problem(held) or _problem_of_frame(file, name)
                if problem:
                    unusable[name] = problem
                else:
                    read = _reader(path, name, h5py.check_string_dtype(held.dtype) is not None)
                    arrays[name] = Array(f"{path}[{name}]", held.shape[0], held.shape[1:], read)
            return len(arrays) + len(unusable) > MOST_DATASETS or None

        # Visits hard links only, each object once.
        if file.visititems(visit):
            raise CommandError(f"{path}: holds more than {MOST_DATASETS} datasets")
    if not arrays and not unusable:
        raise CommandError(f"{path}: holds no dataset with rows")
    return Arrays(path, arrays, unusable)


def _problem(dataset: Any) -> str:
    """Why a dataset is not plain numbers, booleans or text in this very file, or ""."""
    import h5py

    dtype = dataset.dtype
    text = h5py.check_string_dtype(dtype) is not None
    if dataset.external or dataset.is_virtual:
        return "lies in another file, which is not followed"
    if not text and dtype.kind not in "bfiu":
        remedy = "; save a numeric array of its columns" if dtype.names else ""
        return f"holds {str(dtype)[:60]}, not real numbers{remedy}"
    if 0 in dataset.shape:
        return f"is empty, its shape is {dataset.shape}"
    if dataset.chunks and np.prod(dataset.chunks, dtype=float) * dtype.itemsize > LARGEST_CHUNK:
        return f"is stored in chunks of more than {LARGEST_CHUNK} bytes; save it in smaller ones"
    # What was never written takes no place, whatever the shape.
    try:
        check_packing(dataset.name, dataset.size * dtype.itemsize, dataset.id.get_storage_size())
    except CommandError as error:
        return str(error)
    return ""


def _problem_of_frame(file: Any, name: str) -> str:
    """Why a block of columns of a pandas frame may be more than features, or ""."""
    items = file.get(f"{name.removesuffix('_values')}_items") if BLOCK.search(name) else None
    if items is None:
        return ""
    names = [n.decode("utf-8", "replace") if isinstance(n, bytes) else str(n) for n in items[:]]
    if len({family(n) for n in names}) == 1 and (family(names[0]) or len(names) == 1):
        return ""
    return f"is a pandas frame's block of the columns {listed(names)}; save x.to_parquet instead"


def _reader(path: Path, name: str, text: bool) -> Callable[[int], Iterator[np.ndarray]]:
    def read(rows: int) -> Iterator[np.ndarray]:
        import h5py

        with h5py.File(path, "r") as file:
            dataset = file[name]
            view = dataset.asstr(errors="backslashreplace") if text else dataset
            for start in range(0, dataset.shape[0], rows):
                yield np.asarray(view[start : start + rows])

    return read
