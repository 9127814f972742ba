"""What a file holds, as every reader describes it, and the guards that readers share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import numpy as np

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
        notes: What was decided in reading it that its user should know, a line each.
        columns: The table's columns that it consists of, if it comes from a table.
    """

    name: str
    rows: int | None
    shape: tuple[int, ...]
    read: Callable[[int], Iterator[np.ndarray]]
    notes: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()

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
    pool: str | None = None


class Contents(Protocol):
    """What an open file holds: an object such as ``Arrays`` or ``Table``.

    A reader is a function from a path to this. It checks the file's claims; the array that is
    picked reads the rows.
    """

    def pick(self, wanted: Wanted) -> Array:
        """Return the array that is asked for.

        Raises:
            CommandError: If none fits, or more than one does.
        """

    def names(self) -> list[str]:
        """The names of all arrays or columns."""

    def possible_labels(self) -> list[str]:
        """The names of those that could hold the class of each row."""


@contextmanager
def one_line_errors(name: str) -> Iterator[None]:
    """Report any error in a damaged or hostile file as one line.

    Raises:
        CommandError: In place of any exception other than ImportError.
    """
    try:
        yield
    except ImportError:
        raise
    except CommandError as error:
        text = str(error)
        whole = text if name.partition("[")[0] in text else f"{name}: {text}"
        raise CommandError(printable(whole)) from error
    except MemoryError as error:
        raise CommandError(printable(f"{name}: asks for more memory than there is")) from error
    except Exception as error:
        reason = str(error).strip().split("\n")[0][:200] or type(error).__name__
        raise CommandError(printable(f"{name}: cannot be read: {reason}")) from error


def printable(text: str) -> str:
    """Text with an escape in place of whatever a terminal would act on or cannot encode."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def rechunk(chunks: Iterator[np.ndarray], rows: int) -> Iterator[np.ndarray]:
    """Yield chunks of an equal number of rows; the last may be shorter."""
    kept: list[np.ndarray] = []
    held = 0
    for chunk in chunks:
        kept.append(chunk)
        held += len(chunk)
        if held < rows:
            continue
        joined = np.concatenate(kept) if len(kept) > 1 else kept[0]
        whole = held - held % rows
        yield from (joined[start : start + rows] for start in range(0, whole, rows))
        kept, held = [joined[whole:]], held - whole
    if held:
        yield np.concatenate(kept)


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
