"""Pairs that a file lists, by the numbers or ids of their rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from hsplugin.errors import CommandError
from hsplugin.measure.geometry import Geometry, Options, Progress, measure
from hsplugin.measure.pairs import Pairs, with_pairs
from hsplugin.measure.rows import scores_of, tensor_of, together
from hsplugin.readers import Array

LISTED_AT_ONCE = 2**16
LOOKED_UP_AT_ONCE = 2**12


@dataclass(frozen=True)
class PairList:
    """Pairs in a file, by the numbers or ids of their rows.

    Attributes:
        name: The file's name.
        columns: One array of shape (P, 2), or two of shape (P,).
        ids: Those of the rows that the first and the second of a pair name, None for row numbers.
        scores: A score of each pair, or None.
        least: The least score of a pair that counts.
    """

    name: str
    columns: tuple[Array, ...]
    ids: tuple[Array | None, Array | None] = (None, None)
    scores: Array | None = None
    least: float = 0.0

    def rows(self, first: int, second: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield the row numbers of the pairs that count, given how many rows each side has.

        Raises:
            CommandError: If a pair names no row, an id is there twice, or a score is no number.
        """
        sizes = (first, second)
        known = [None if ids is None else _rows_by_id(ids) for ids in self.ids]
        for ids, lookup, size in zip(self.ids, known, sizes, strict=True):
            if ids is not None and lookup is not None and len(lookup) != size:
                raise CommandError(f"{ids.name}: has {len(lookup)} ids for {size} rows")
        done = 0
        scores = () if self.scores is None else (self.scores,)
        for chunks in together(*self.columns, *scores, rows=LISTED_AT_ONCE):
            ends = chunks[0].T if len(self.columns) == 1 else chunks[:2]
            if len(ends) != 2:
                raise CommandError(f"{self.name}: pairs are two columns, but this has {len(ends)}")
            i, j = (
                _row_numbers(self.name, end, done, lookup, size)
                for end, lookup, size in zip(ends, known, sizes, strict=True)
            )
            if self.scores is not None:
                good = scores_of(self.scores, chunks[-1], done) >= self.least
                i, j = i[good], j[good]
            for start in range(0, len(i), LOOKED_UP_AT_ONCE):
                here = slice(start, start + LOOKED_UP_AT_ONCE)
                yield i[here], j[here]
            done += len(chunks[0])


@dataclass
class Kept:
    """Features whose rows, once read, can be looked up; they take N d numbers of memory."""

    array: Array
    parts: list[Tensor] = field(default_factory=list)

    def stream(self) -> Array:
        """The same features, kept as they are read."""

        def read(rows: int) -> Iterator[np.ndarray]:
            self.parts.clear()
            done = 0
            for chunk in self.array.chunks(rows):
                self.parts.append(tensor_of(self.array, chunk, done, "cpu"))
                done += len(chunk)
                yield chunk

        return replace(self.array, read=read)

    def rows(self) -> Tensor:
        """All rows, shape (N, d)."""
        self.parts[:] = [torch.cat(self.parts)]
        return self.parts[0]


def measure_listed(
    features: Array,
    listed: PairList,
    labels: Array | None,
    options: Options,
    progress: Progress = lambda rows: None,
) -> Geometry:
    """Measure features and the alignment of listed pairs of their rows.

    Takes the memory of all rows besides what :func:`~hsplugin.measure.geometry.measure` takes.

    Raises:
        CommandError: As there, and if a pair names no row.
    """
    kept = Kept(features)
    geometry = measure(kept.stream(), None, labels, options, progress)
    pairs = Pairs(options)
    rows = kept.rows()
    add_listed(pairs, listed, rows, rows)
    return with_pairs(geometry, pairs)


def add_listed(pairs: Pairs, listed: PairList, x: Tensor, y: Tensor) -> None:
    """Add the pairs of a list, of rows x (N, d) and y (M, d)."""
    for i, j in listed.rows(len(x), len(y)):
        first, second = x[torch.from_numpy(i)], y[torch.from_numpy(j)]
        dtype = torch.promote_types(x.dtype, y.dtype)
        pairs.add(i, j, first.to(dtype), second.to(dtype))


def _rows_by_id(ids: Array) -> dict[str, int]:
    found: dict[str, int] = {}
    row = 0
    for chunk in ids.chunks(2**16):
        for name in chunk.astype(str).tolist():
            if found.setdefault(name, row) != row:
                raise CommandError(
                    f"{ids.name}: rows {found[name]} and {row} (counted from 0) have the same id "
                    f"{name[:50]!r}"
                )
            row += 1
    return found


def _row_numbers(
    name: str, ends: np.ndarray, done: int, lookup: dict[str, int] | None, size: int
) -> np.ndarray:
    if lookup is not None:
        rows = np.array([lookup.get(end, -1) for end in ends.astype(str).tolist()], dtype=np.int64)
        what = "an id of no row"
    else:
        try:
            values = ends.astype(np.float64)
        except ValueError as error:
            raise CommandError(
                f"{name}: pairs are numbers of rows, counted from 0, unless --id-key or --ids "
                f"names the ids of the rows: {error}"
            ) from error
        whole = (values == np.floor(values)) & (values >= 0) & (values < size)
        rows = np.where(whole, values, -1).astype(np.int64)
        what = f"no number of one of {size} rows (counted from 0)"
    if (rows < 0).any():
        place = int((rows < 0).argmax())
        raise CommandError(
            f"{name}: pair {done + place} (counted from 0) holds {str(ends[place])[:50]!r}, {what}"
        )
    return rows
