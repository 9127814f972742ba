"""One vector of each row, where a row holds tokens, a map or a vector with axes of length one."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np

from hsplugin.errors import CommandError
from hsplugin.readers.contents import Array, Wanted, rechunk

POOLS = ("mean", "cls", "max", "flatten")


def fitted(array: Array, wanted: Wanted) -> Array | None:
    """The array with as many dimensions as asked for, or None if it has others.

    Axes of length one are left out where that alone makes it fit. Rows of more dimensions are
    pooled if asked for.

    Raises:
        CommandError: If it cannot be pooled in this way.
    """
    if len(array.shape) + 1 == wanted.dimensions:
        return array
    long = tuple(size for size in array.shape if size > 1)
    if wanted.dimensions == 2 and not long and array.shape:
        long = (1,)
    if len(long) + 1 == wanted.dimensions:
        note = f"{array.name}: axes of length one are left out of {(array.rows, *array.shape)}"
        return _with_rows(array, long, lambda chunk: chunk.reshape(-1, *long), note)
    if wanted.pool is None or len(array.shape) + 1 < wanted.dimensions or wanted.dimensions != 2:
        return None
    return _pooled(array, wanted.pool)


def _pooled(array: Array, pool: str) -> Array:
    """Tokens (N, L, d) pooled over L, maps (N, d, h, w) over h and w, anything flattened."""
    whole = (array.rows, *array.shape)
    if pool == "flatten":
        dim = math.prod(array.shape)
        note = f"{array.name}: {whole} is flattened to {dim} dimensions"
        return _with_rows(array, (dim,), lambda chunk: chunk.reshape(-1, dim), note)
    if len(array.shape) > 3 or (pool == "cls" and len(array.shape) != 2):
        takes = "tokens (N, L, d)" + ("" if pool == "cls" else " and maps (N, d, h, w)")
        raise CommandError(
            f"{array.name}: --pool {pool} takes {takes}, this has {whole}; --pool flatten takes any"
        )
    if pool == "cls":
        note = f"{array.name}: the first of the {array.shape[0]} tokens of {whole} is measured"
        return _with_rows(array, array.shape[1:], lambda chunk: chunk[:, 0], note)
    tokens = len(array.shape) == 2
    what = "axis 1, as of tokens with padding if there is any," if tokens else "the last two axes"
    note = f"{array.name}: the {pool} over {what} of {whole} is measured"
    axes = (1,) if tokens else (2, 3)
    shape = array.shape[1:] if tokens else array.shape[:1]
    if pool == "max":
        return _with_rows(array, shape, lambda chunk: chunk.max(axis=axes), note)
    return _with_rows(array, shape, lambda chunk: _mean(chunk, axes), note)


def _mean(chunk: np.ndarray, axis: tuple[int, ...]) -> np.ndarray:
    mean: np.ndarray = chunk.mean(axis=axis, dtype=np.float64)
    return mean if chunk.dtype == np.float64 else mean.astype(np.float32)


def _with_rows(
    array: Array, shape: tuple[int, ...], change: Callable[[np.ndarray], np.ndarray], note: str
) -> Array:
    # A chunk takes as much memory before it is pooled as afterwards.
    smaller = max(1, math.prod(array.shape) // math.prod(shape))

    def read(rows: int) -> Iterator[np.ndarray]:
        return rechunk(map(change, array.read(max(1, rows // smaller))), rows)

    return replace(array, shape=shape, read=read, notes=(*array.notes, note))
