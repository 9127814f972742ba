"""What a file holds, as every reader describes it, and the guards that readers share."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from hsplugin.checks import unknown
from hsplugin.errors import CommandError

# Embeddings hardly compress, zeros a thousandfold. Anything small may be packed at any density.
DENSEST_PACKING = 100
SMALL_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Array:
    """An array in a file, read one chunk of rows at a time.

    Attributes:
        name: Its name in messages: the file, and the array's name within the file if it has one.
        rows: Number of rows, or None if the file does not say.
        shape: Shape of one row.
        read: Takes a number of rows and yields chunks of that many (the last may be shorter).
    """

    name: str
    rows: int | None
    shape: tuple[int, ...]
    read: Callable[[int], Iterator[np.ndarray]]

    def chunks(self, rows: int) -> Iterator[np.ndarray]:
        """Yield chunks of rows.

        Raises:
            CommandError: If the file cannot be read to its end.
        """
        with one_line_errors(self.name):
            yield from self.read(rows)


@dataclass(frozen=True)
class Wanted:
    """Which array of a file is asked for; the fields are arguments of ``find_array``."""

    key: str | None
    dimensions: int
    purpose: str
    others: tuple[str, ...] = ()


class Contents(Protocol):
    """What an open file holds: :class:`Arrays` or :class:`~hsplugin.measure.readers.table.Table`.

    A reader is a function from a path to this. It checks the file's claims and reads no rows; the
    array that is picked reads them.
    """

    def pick(self, wanted: Wanted) -> Array:
        """Return the array that is asked for.

        Raises:
            CommandError: If none fits, or more than one does.
        """

    def names(self) -> list[str]:
        """Return the names of all arrays or columns."""


@dataclass(frozen=True)
class Arrays:
    """Arrays by name; the name is ``""`` where the file holds a single array without one."""

    path: Path
    arrays: dict[str, Array]

    def names(self) -> list[str]:
        """Return the names of the arrays."""
        return list(self.arrays)

    def pick(self, wanted: Wanted) -> Array:
        """Return the array called ``wanted.key``, or the only one with the right dimensions.

        Raises:
            CommandError: If there is none, or more than one.
        """
        arrays, key = self.arrays, wanted.key
        if key is None:
            arrays = {name: a for name, a in arrays.items() if name not in wanted.others}
        elif key in arrays:
            arrays = {key: arrays[key]}
        elif set(arrays) != {""}:
            raise CommandError(f"{self.path}: {unknown('array', key, arrays)}")
        fitting = [a for a in arrays.values() if len(a.shape) + 1 == wanted.dimensions]
        if len(fitting) == 1:
            return fitting[0]
        if not arrays:
            raise CommandError(f"{self.path}: holds nothing that could be the {wanted.purpose}")
        if len(arrays) == 1:
            (array,) = arrays.values()
            shape = "(rows, dimensions)" if wanted.dimensions == 2 else "(rows,)"
            raise CommandError(
                f"{array.name}: {wanted.purpose} need shape {shape}, "
                f"this has {(array.rows, *array.shape)}"
            )
        shapes = ", ".join(f"{name} {(a.rows, *a.shape)}" for name, a in sorted(arrays.items()))
        raise CommandError(
            f"{self.path}: holds {shapes}; say which are the {wanted.purpose} (see --help)"
        )


@contextmanager
def one_line_errors(name: str) -> Iterator[None]:
    """Report any error in a damaged or hostile file as one line.

    Raises:
        CommandError: In place of any exception other than ImportError.
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


def check_packing(name: str, unpacked: int, packed: int) -> None:
    """Refuse data that unpacks to far more bytes than embeddings could.

    Raises:
        CommandError: If so.
    """
    if unpacked > SMALL_BYTES and unpacked > DENSEST_PACKING * packed:
        raise CommandError(
            f"{name}: {packed} bytes unpack to {unpacked}, more than {DENSEST_PACKING} times as "
            f"many, which embeddings do not; save it uncompressed if this is intended"
        )


def missing_package(suffix: str, package: str, error: ImportError) -> ImportError:
    """The error that says which extra a format needs."""
    return ImportError(
        f"reading {suffix} needs {package}: pip install 'hsplugin[measure]' ({error})"
    )
