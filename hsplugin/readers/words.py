"""Vectors in lines of numbers, each after a word or not: GloVe, word2vec and fastText."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import IO

import numpy as np

from hsplugin.errors import CommandError
from hsplugin.readers.arrays import Arrays
from hsplugin.readers.contents import Array

LONGEST_LINE = 16 * 2**20
LONGEST_WORD = 4096
NUMBER = re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)(e[-+]?\d+)?|[-+]?(inf|nan)", re.IGNORECASE)
# Yields words and the matrix of their vectors, as many rows at a time as asked for.
Read = Callable[[int], Iterator[tuple[list[str], np.ndarray]]]


def are_spaced_numbers(lines: list[str]) -> bool:
    """Whether lines hold numbers between spaces, all as many, of which a word may be the first.

    Word2vec's line of counts may come first.
    """
    fields = [line.split() for line in lines if line.strip()]
    counted = bool(fields) and _counts(fields[0]) is not None
    if counted:
        fields = fields[1:] or fields
    dim = min(map(len, fields), default=1) - 1
    # A word and one number may as well be a label of two words.
    if dim < 1 or (dim == 1 and not NUMBER.fullmatch(fields[0][0])):
        return False
    if not all(NUMBER.fullmatch(number) for f in fields for number in f[-dim:]):
        return False
    # A table of numbers only, one of which may be an id, is read by columns.
    worded = counted or any(len(f) != dim + 1 or not NUMBER.fullmatch(f[0]) for f in fields)
    return worded or not places_of_ids(fields)


def places_of_ids(records: list[list[str]]) -> list[int]:
    """The first and last place in records of numbers, if only whole numbers stand there.

    Beside decimals they may be ids or labels, which ``numpy.savetxt`` writes like all others.
    """
    columns = list(zip(*records, strict=True))
    whole = [all(_is_whole(field) for field in column) for column in columns]
    return [] if all(whole) else [n for n in sorted({0, len(whole) - 1}) if whole[n]]


def _is_whole(field: str) -> bool:
    try:
        return float(field.replace(",", ".")).is_integer()
    except ValueError:
        return False


def open_spaced(path: Path) -> Arrays:
    """Open lines of numbers between spaces, as ``numpy.savetxt``, GloVe or word2vec write them.

    Raises:
        CommandError: If the first lines differ in length.
    """
    with path.open("rb") as file:
        lines = [line.split() for line in islice(_lines(path, file), 3)]
    counts = _counts([field.decode("utf-8", "replace") for field in lines[0]]) if lines else None
    if counts and (len(lines) < 2 or len(lines[1]) <= counts[1]):
        counts = None
    first = lines[1 if counts else 0]
    # Words may hold spaces, their vectors are of one length.
    worded = counts is not None or not all(
        NUMBER.fullmatch(line[0].decode("utf-8", "replace")) for line in lines
    )
    dim = counts[1] if counts else len(first) - worded
    if worded and counts is None and len(lines) > 1:
        dim = min(dim, len(lines[-1]) - 1)

    def read(rows: int) -> Iterator[tuple[list[str], np.ndarray]]:
        done = 0
        with path.open("rb") as file:
            whole = _lines(path, file)
            if counts:
                next(whole)
            while batch := list(islice(whole, rows)):
                words, vectors = [], np.empty((len(batch), dim))
                for row, line in enumerate(batch):
                    word, values = _parted(line, dim, worded)
                    if values is None:
                        raise CommandError(
                            f"{path}: row {done + row} (counted from 0) is not "
                            f"{'a word and ' * worded}{dim} numbers, as the first rows are"
                        )
                    words.append(word)
                    vectors[row] = values
                yield words, vectors
                done += len(batch)
        if counts and done != counts[0]:
            raise CommandError(f"{path}: has {done} rows, but its first line claims {counts[0]}")

    return _arrays(path, dim, counts[0] if counts else None, read, worded)


def open_word2vec(path: Path) -> Arrays:
    """Open the binary file that word2vec and gensim write: counts, then words and vectors.

    Raises:
        CommandError: If it does not start with counts, or they claim more than is there.
    """
    with path.open("rb") as file:
        start = file.readline(64)
    counts = _counts(start.decode("latin-1").split())
    if counts is None:
        raise CommandError(
            f"{path}: is neither torch's file nor word2vec's, which starts with counts"
        )
    count, dim = counts
    if count * (4 * dim + 1) > path.stat().st_size:
        raise CommandError(f"{path}: its first line claims {count} vectors, but it is too small")

    def read(rows: int) -> Iterator[tuple[list[str], np.ndarray]]:
        with path.open("rb") as file:
            file.seek(len(start))
            for done in range(0, count, rows):
                size = min(rows, count - done)
                words, vectors = [], np.empty((size, dim), dtype=np.float32)
                for row in range(size):
                    words.append(_word(path, file))
                    content = file.read(4 * dim)
                    if len(content) < 4 * dim:
                        raise CommandError(f"{path}: ends after {done + row} of {count} vectors")
                    vectors[row] = np.frombuffer(content, "<f4")
                yield words, vectors
            # A value of other than four bytes would shift all but the first vector.
            if file.read(2).strip(b"\n"):
                raise CommandError(f"{path}: does not end after the {count} vectors it claims")

    return _arrays(path, dim, count, read, True)


def _arrays(path: Path, dim: int, rows: int | None, read: Read, worded: bool) -> Arrays:
    vectors = Array(str(path), rows, (dim,), lambda size: (chunk for _, chunk in read(size)))
    if not worded:
        return Arrays(path, {"": vectors})
    words = Array(
        f"{path}[words]", rows, (), lambda size: (np.array(w, dtype=object) for w, _ in read(size))
    )
    return Arrays(path, {"vectors": vectors, "words": words})


def _counts(fields: list[str]) -> tuple[int, int] | None:
    """Rows and dimensions, if a line holds nothing else."""
    if len(fields) != 2 or not all(f.isascii() and f.isdigit() and len(f) < 15 for f in fields):
        return None
    count, dim = map(int, fields)
    return (count, dim) if count and 1 < dim < 2**24 else None


def _lines(path: Path, file: IO[bytes]) -> Iterator[bytes]:
    while line := file.readline(LONGEST_LINE + 1):
        if len(line) > LONGEST_LINE:
            raise CommandError(f"{path}: has a line of more than {LONGEST_LINE} bytes")
        if line.strip():
            yield line


def _parted(line: bytes, dim: int, worded: bool) -> tuple[str, np.ndarray | None]:
    fields = line.rsplit(None, dim)
    word = b"" if len(fields) == dim and not worded else fields.pop(0)
    if len(fields) != dim or (word and not worded):
        return "", None
    try:
        values = np.array(fields, dtype="S").astype(np.float64)
    except ValueError:
        return "", None
    return word.decode("utf-8", "backslashreplace"), values


def _word(path: Path, file: IO[bytes]) -> str:
    word = bytearray()
    while (byte := file.read(1)) != b" ":
        if not byte or len(word) > LONGEST_WORD:
            raise CommandError(f"{path}: has a word without an end")
        word += byte
    # Word2vec ends a vector with a line break, gensim does not.
    return bytes(word).lstrip(b"\n").decode("utf-8", "backslashreplace")
