"""Embeddings in files of others: found by name, checked before anything is allocated, streamed.

No reader executes what a file holds (no pickle), believes a header that the file's size does not
bear out, or unpacks an archive that is packed far denser than embeddings can be.
"""

from __future__ import annotations

import math
import pickle
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from hsplugin.checks import unknown
from hsplugin.errors import CommandError

# Embeddings hardly compress; zeros do a thousandfold. Small members may be as dense as they like.
DENSEST_PACKING = 100
SMALL_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Array:
    """An array in a file, read a chunk of rows at a time.

    Attributes:
        name: How messages call it: the file, and the array's name within it if it has one.
        rows: Number of rows, or None if the file does not say.
        shape: Shape of one row.
        read: Called with a number of rows, yields the rows in chunks of that many (the last may
            be shorter).
    """

    name: str
    rows: int | None
    shape: tuple[int, ...]
    read: Callable[[int], Iterator[np.ndarray]]

    def chunks(self, rows: int) -> Iterator[np.ndarray]:
        """Yield chunks of rows; whatever is wrong with the file becomes a one-line error.

        Raises:
            CommandError: If the file cannot be read to its end.
        """
        with one_line_errors(self.name):
            yield from self.read(rows)


@contextmanager
def one_line_errors(name: str) -> Iterator[None]:
    """Turn whatever a reader makes of a damaged or hostile file into one line.

    Raises:
        CommandError: In place of any other exception but ImportError.
    """
    try:
        yield
    except (CommandError, ImportError):
        raise
    except pickle.UnpicklingError as error:
        raise CommandError(
            f"{name}: holds objects other than tensors, which loading could execute; "
            f"save tensors alone, as with torch.save({{'features': x}}, path)"
        ) from error
    except MemoryError as error:
        raise CommandError(f"{name}: asks for more memory than there is") from error
    except Exception as error:
        reason = str(error).strip().split("\n")[0][:200] or type(error).__name__
        raise CommandError(f"{name}: cannot be read: {reason}") from error


def find_array(
    path: Path,
    key: str | None,
    *,
    dimensions: int,
    purpose: str,
    others: list[str] | None = None,
) -> Array:
    """The array of a file that is meant: the one called ``key``, or the only one that fits.

    Args:
        path: A file of a known kind.
        key: The array's name; for tables, column names or patterns such as ``x*``, with commas.
        dimensions: 2 for features, 1 for labels.
        purpose: What it is wanted for, for messages.
        others: Keys of what else is in the file and therefore not meant without a key.

    Raises:
        CommandError: If there is none, more than one, or the file is missing, empty or damaged.
    """
    from hsplugin.measure import tables, tensors

    with one_line_errors(str(path)):
        if not path.is_file():
            raise CommandError(f"{path}: no such file")
        if path.stat().st_size == 0:
            raise CommandError(f"{path}: is empty")
        suffix = path.suffix.lower()
        if suffix in tables.READERS:
            return tables.READERS[suffix](path, key, others or [], dimensions)
        readers = _READERS | tensors.READERS
        if suffix not in readers:
            known = ", ".join(sorted([*readers, *tables.READERS]))
            raise CommandError(f"{path}: unknown kind of file {suffix!r}; known are {known}")
        arrays = readers[suffix](path)
    if key is None:
        arrays = {name: a for name, a in arrays.items() if name not in (others or [])}
    return _choose(path, arrays, key, dimensions, purpose)


def _choose(
    path: Path, arrays: dict[str, Array], key: str | None, dimensions: int, purpose: str
) -> Array:
    if key is not None and key in arrays:
        array = arrays[key]
        if len(array.shape) + 1 != dimensions:
            raise CommandError(_wrong_shape(array, dimensions, purpose))
        return array
    if key is not None and set(arrays) != {""}:
        raise CommandError(f"{path}: {unknown('array', key, arrays)}")
    fitting = [array for array in arrays.values() if len(array.shape) + 1 == dimensions]
    if len(fitting) == 1:
        return fitting[0]
    if len(arrays) == 1:
        raise CommandError(_wrong_shape(next(iter(arrays.values())), dimensions, purpose))
    if not arrays:
        raise CommandError(f"{path}: holds nothing that could be the {purpose}")
    shapes = ", ".join(f"{name} {(a.rows, *a.shape)}" for name, a in sorted(arrays.items()))
    raise CommandError(f"{path}: holds {shapes}; say which are the {purpose} (see --help)")


def _wrong_shape(array: Array, dimensions: int, purpose: str) -> str:
    wanted = "(rows, dimensions)" if dimensions == 2 else "(rows,)"
    return f"{array.name}: {purpose} need shape {wanted}, this has {(array.rows, *array.shape)}"


def _check_array(name: str, dtype: np.dtype[Any], shape: tuple[int, ...], available: int) -> None:
    """Refuse an array that is not plain numbers, truths or text, or larger than its file can hold.

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


def _npy_header(name: str, file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(file)
    if version == (2, 0):
        return np.lib.format.read_array_header_2_0(file)
    raise CommandError(f"{name}: npy version {version} holds structured arrays, not features")


def _npy(path: Path) -> dict[str, Array]:
    with path.open("rb") as file:
        shape, fortran, dtype = _npy_header(str(path), file)
        offset = file.tell()
    _check_array(str(path), dtype, shape, path.stat().st_size - offset)

    def read(rows: int) -> Iterator[np.ndarray]:
        mapped: np.ndarray = np.memmap(
            path, dtype, mode="r", offset=offset, shape=shape, order="F" if fortran else "C"
        )
        for start in range(0, len(mapped), rows):
            yield np.array(mapped[start : start + rows])

    return {"": Array(str(path), shape[0], shape[1:], read)}


def _npz(path: Path) -> dict[str, Array]:
    arrays = {}
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            if info.filename.endswith(".npy"):
                key = info.filename.removesuffix(".npy")
                name = f"{path}[{key}]"
                # Others unpack all of a block at once, whatever size the archive claims.
                if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                    raise CommandError(f"{name}: is packed in a way that numpy does not write")
                packed = min(info.compress_size, path.stat().st_size)
                check_packing(name, info.file_size, packed)
                with archive.open(info) as member:
                    shape, fortran, dtype = _npy_header(name, member)
                    offset = member.tell()
                if dtype.hasobject or not shape:
                    continue
                _check_array(name, dtype, shape, info.file_size - offset)
                arrays[key] = Array(
                    name, shape[0], shape[1:], _npz_reader(path, info, fortran, dtype, shape)
                )
    if not arrays:
        raise CommandError(f"{path}: holds no array of numbers")
    return arrays


def _npz_reader(
    path: Path,
    info: zipfile.ZipInfo,
    fortran: bool,
    dtype: np.dtype[Any],
    shape: tuple[int, ...],
) -> Callable[[int], Iterator[np.ndarray]]:
    name = f"{path}[{info.filename.removesuffix('.npy')}]"

    def read(rows: int) -> Iterator[np.ndarray]:
        if fortran and len(shape) > 1:
            raise CommandError(
                f"{name}: is stored by columns and cannot be streamed; save it as .npy, or by "
                f"rows with np.ascontiguousarray"
            )
        row_bytes = math.prod(shape[1:]) * dtype.itemsize
        with zipfile.ZipFile(path) as archive, archive.open(info) as member:
            _npy_header(name, member)
            for start in range(0, shape[0], rows):
                wanted = min(rows, shape[0] - start) * row_bytes
                content = member.read(wanted)
                if len(content) != wanted:
                    raise CommandError(f"{name}: ends after {start} of {shape[0]} rows")
                yield np.frombuffer(content, dtype).reshape(-1, *shape[1:])

    return read


def check_packing(name: str, unpacked: int, packed: int) -> None:
    """Refuse what unpacks to far more than embeddings could.

    Raises:
        CommandError: If so.
    """
    if unpacked > SMALL_BYTES and unpacked > DENSEST_PACKING * packed:
        raise CommandError(
            f"{name}: {packed} bytes unpack to {unpacked}, more than {DENSEST_PACKING} times as "
            f"many, which embeddings do not; save it uncompressed if it is meant so"
        )


_READERS: dict[str, Callable[[Path], dict[str, Array]]] = {
    ".npy": _npy,
    ".npz": _npz,
}
