"""Embeddings in numpy's files: .npy is mapped into memory, .npz unpacked a few rows at a time."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from hsplugin.errors import CommandError
from hsplugin.measure.readers.contents import Array, Arrays, check_packing


def open_npy(path: Path) -> Arrays:
    """Open the array of a .npy file.

    Raises:
        CommandError: If it does not hold plain values, or the file is too small for its header.
    """
    with path.open("rb") as file:
        shape, fortran, dtype = _header(str(path), file)
        offset = file.tell()
    _check(str(path), dtype, shape, path.stat().st_size - offset)

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
    with zipfile.ZipFile(path) as archive:
        members = [_member(path, archive, info) for info in archive.infolist()]
    arrays = {key: array for key, array in filter(None, members)}
    if not arrays:
        raise CommandError(f"{path}: holds no array of numbers")
    return Arrays(path, arrays)


def _member(
    path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo
) -> tuple[str, Array] | None:
    if not info.filename.endswith(".npy"):
        return None
    key = info.filename.removesuffix(".npy")
    name = f"{path}[{key}]"
    # Other methods unpack a whole block at once, whatever size the archive claims.
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise CommandError(f"{name}: is packed in a way that numpy does not write")
    check_packing(name, info.file_size, min(info.compress_size, path.stat().st_size))
    with archive.open(info) as member:
        shape, fortran, dtype = _header(name, member)
        offset = member.tell()
    if dtype.hasobject or not shape:
        return None
    _check(name, dtype, shape, info.file_size - offset)

    def read(rows: int) -> Iterator[np.ndarray]:
        if fortran and len(shape) > 1:
            raise CommandError(
                f"{name}: is stored by columns and cannot be streamed; save it as .npy, or by "
                f"rows with np.ascontiguousarray"
            )
        row_bytes = math.prod(shape[1:]) * dtype.itemsize
        with zipfile.ZipFile(path) as archive, archive.open(info) as member:
            member.read(offset)
            for start in range(0, shape[0], rows):
                wanted = min(rows, shape[0] - start) * row_bytes
                content = member.read(wanted)
                if len(content) != wanted:
                    raise CommandError(f"{name}: ends after {start} of {shape[0]} rows")
                yield np.frombuffer(content, dtype).reshape(-1, *shape[1:])

    return key, Array(name, shape[0], shape[1:], read)


def _header(name: str, file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(file)
    if version == (2, 0):
        return np.lib.format.read_array_header_2_0(file)
    raise CommandError(f"{name}: npy version {version} holds structured arrays, not features")


def _check(name: str, dtype: np.dtype[Any], shape: tuple[int, ...], available: int) -> None:
    """Refuse an array that is not numbers, booleans or text, or larger than its file can hold.

    Raises:
        CommandError: If so.
    """
    if dtype.kind not in "bfiuSU":
        raise CommandError(f"{name}: holds {dtype}, not real numbers; nothing else is loaded")
    if not shape or any(size < 0 for size in shape):
        raise CommandError(f"{name}: has shape {shape}; expected rows of features")
    if 0 in shape or dtype.itemsize == 0:
        raise CommandError(f"{name}: is empty, its shape is {shape}")
    claimed = math.prod(shape) * dtype.itemsize
    if claimed > available:
        raise CommandError(
            f"{name}: its header claims shape {shape}, {claimed} bytes, but {available} are there"
        )
