"""Vectors in the files of nearest-neighbour benchmarks: .fvecs, .bvecs, .fbin, .u8bin, .i8bin."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from hsplugin.errors import CommandError
from hsplugin.readers.arrays import Arrays
from hsplugin.readers.contents import Array

TYPES = {".fvecs": "<f4", ".bvecs": "u1", ".fbin": "<f4", ".u8bin": "u1", ".i8bin": "i1"}


def open_vecs(path: Path) -> Arrays:
    """Open .fvecs or .bvecs: before each vector stands its length, as an integer of four bytes.

    Raises:
        CommandError: If the file's size is no multiple of the first vector's.
    """
    dtype = np.dtype(TYPES[path.suffix.lower()])
    size = path.stat().st_size
    with path.open("rb") as file:
        (dim,) = struct.unpack("<i", file.read(4))
    row_bytes = 4 + dim * dtype.itemsize
    if dim < 1 or size % row_bytes:
        raise CommandError(
            f"{path}: claims {dim} dimensions, but its {size} bytes are not so many times such rows"
        )
    row = np.dtype([("dim", "<i4"), ("vector", dtype, (dim,))])

    def read(rows: int) -> Iterator[np.ndarray]:
        whole: np.ndarray = np.memmap(path, row, mode="r")
        for start in range(0, len(whole), rows):
            chunk = whole[start : start + rows]
            if (odd := chunk["dim"] != dim).any():
                raise CommandError(
                    f"{path}: row {start + int(odd.argmax())} (counted from 0) has another length"
                )
            yield np.array(chunk["vector"])

    return Arrays(path, {"": Array(str(path), size // row_bytes, (dim,), read)})


def open_counted(path: Path) -> Arrays:
    """Open .fbin, .u8bin or .i8bin: the counts of rows and of dimensions, then the values.

    Raises:
        CommandError: If the counts do not agree with the file's size.
    """
    dtype = np.dtype(TYPES[path.suffix.lower()])
    with path.open("rb") as file:
        rows, dim = struct.unpack("<II", file.read(8))
    claimed = 8 + rows * dim * dtype.itemsize
    if claimed != path.stat().st_size or not rows or not dim:
        raise CommandError(
            f"{path}: claims shape {(rows, dim)}, {claimed} bytes, but has {path.stat().st_size}"
        )

    def read(size: int) -> Iterator[np.ndarray]:
        whole: np.ndarray = np.memmap(path, dtype, mode="r", offset=8, shape=(rows, dim))
        for start in range(0, rows, size):
            yield np.array(whole[start : start + size])

    return Arrays(path, {"": Array(str(path), rows, (dim,), read)})
