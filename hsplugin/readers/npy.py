"""Embeddings in numpy's files: .npy is mapped into memory, .npz unpacked a few rows at a time."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from hsplugin.errors import CommandError
from hsplugin.readers.arrays import Arrays
from hsplugin.readers.contents import Array, check_packing

FIELDS = (
    "holds named fields; save numpy.lib.recfunctions.structured_to_unstructured(x[fields]) instead"
)


def open_npy(path: Path) -> Arrays:
    """Open the array of a .npy file.

    Raises:
        CommandError: If it does not hold plain values, or the file is too small for its header.
    """
    with path.open("rb") as file:
        shape, fortran, dtype = _header(str(path), file)
        offset = file.tell()
    problem = _problem(dtype, shape, path.stat().st_size - offset)
    if problem:
        raise CommandError(f"{path}: {problem}")

    def read(rows: int) -> Iterator[np.ndarray]:
        mapped: np.ndarray = np.memmap(
            path, dtype, mode="r", offset=offset, shape=shape, order="F" if fortran else "C"
        )
        for start in range(0, len(mapped), rows):
            yield np.array(mapped[start : start + rows])

    return Arrays(path, {"": Array(str(path), shape[0], shape[1:], read)})


def open_npz(path: Path) -> Arrays:
    """Open the arrays of a .npz archive, all but scalars and arrays of objects.

    Raises:
        CommandError: If there is none, or a member's size or packing is not what numpy writes.
    """
    arrays: dict[str, Array] = {}
    unusable: dict[str, str] = {}
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            if not info.filename.endswith(".npy"):
                continue
            key = info.filename.removesuffix(".npy")
            found = _member(path, archive, info, f"{path}[{key}]")
            if isinstance(found, str):
                unusable[key] = found
            elif found is not None:
                arrays[key] = found
    if not arrays and not unusable:
        raise CommandError(f"{path}: holds no array of numbers")
    return Arrays(path, arrays, unusable)


def _member(
    path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo, name: str
) -> Array | str | None:
    """The array of a member, the reason why it is of no use, or None for a scalar."""
    # Other methods unpack a whole block at once, whatever size the archive claims.
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise CommandError(f"{name}: is packed in a way that numpy does not write")
    check_packing(name, info.file_size, min(info.compress_size, path.stat().st_size))
    with archive.open(info) as member:
        shape, fortran, dtype = _header(name, member)
        offset = member.tell()
    if not shape and not dtype.hasobject:
        return None
    problem = _problem(dtype, shape, info.file_size - offset)
    if fortran and len(shape) > 1 and not problem:
        problem = (
            "is stored by columns and cannot be streamed; save it as .npy, or by rows with "
            "np.ascontiguousarray"
        )
    if problem:
        return problem

    def read(rows: int) -> Iterator[np.ndarray]:
        row_bytes = math.prod(shape[1:]) * dtype.itemsize
        with zipfile.ZipFile(path) as archive, archive.open(info) as member:
            member.read(offset)
            for start in range(0, shape[0], rows):
                wanted = min(rows, shape[0] - start) * row_bytes
                content = member.read(wanted)
                if len(content) != wanted:
                    raise CommandError(f"{name}: ends after {start} of {shape[0]} rows")
                yield np.frombuffer(content, dtype).reshape(-1, *shape[1:])

    return Array(name, shape[0], shape[1:], read)


def _header(name: str, file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(file)
    if version == (2, 0):
        return np.lib.format.read_array_header_2_0(file)
    if version == (3, 0):
        # Of version 2, but for names of fields outside of Latin-1.
        raise CommandError(f"{name}: {FIELDS}")
    raise CommandError(f"{name}: is of an unknown version of npy, {version}")


def _problem(dtype: np.dtype[Any], shape: tuple[int, ...], available: int) -> str:
    """Why an array is not plain numbers, booleans or text that its file can hold, or ""."""
    if dtype.hasobject and not shape:
        return (
            "holds a pickled object such as a dict, which is never loaded; if you trust it, "
            "convert it: d = np.load(path, allow_pickle=True).item(); "
            "np.save('x.npy', np.stack(list(d.values())))"
        )
    if dtype.hasobject:
        return (
            "holds pickled objects, not real numbers, and these are never loaded; if you trust "
            "it, convert it: x = np.load(path, allow_pickle=True), then np.save vectors as "
            "np.stack(x) and text as x.astype(str)"
        )
    if dtype.names:
        return FIELDS
    if dtype.kind not in "bfiuSU":
        return f"holds {str(dtype)[:60]}, not real numbers; nothing else is loaded"
    if not shape or any(size < 0 for size in shape):
        return f"has shape {shape}; expected rows of features"
    if 0 in shape or dtype.itemsize == 0:
        return f"is empty, its shape is {shape}"
    claimed = math.prod(shape) * dtype.itemsize
    if claimed > available:
        return f"its header claims shape {shape}, {claimed} bytes, but {available} are there"
    if claimed < available:
        return (
            f"{available - claimed} bytes follow its array of shape {shape}, such as arrays that "
            f"np.save appended; load all and save them as one"
        )
    return ""
