"""Rows of several arrays, read together and checked."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hsplugin.checks import listed
from hsplugin.errors import CommandError
from hsplugin.metrics.directions import largest_entries
from hsplugin.metrics.sampling import GROUPS
from hsplugin.readers import Array, find_array, label_names

CHUNK_BYTES = 64 * 2**20
LONGEST_LABEL = 1000
# More values are names of rows rather than classes, unless they are chosen.
MOST_KNOWN_CLASSES = 1000
MISSING_LABELS = ["", "nan", "None"]


def check_rows(a: Array, rows_a: int | None, b: Array, rows_b: int | None) -> None:
    """Refuse arrays of different length: their rows cannot belong together.

    Raises:
        CommandError: If so.
    """
    if rows_a != rows_b:
        raise CommandError(
            f"{b.name}: has {rows_b} rows, but {a.name} has {rows_a}; row i of one belongs to "
            f"row i of the other"
        )


def check_dimensions(a: Array, b: Array) -> None:
    """Refuse features of different dimension: they have no distance.

    Raises:
        CommandError: If so.
    """
    if a.shape != b.shape:
        raise CommandError(f"{b.name}: has {b.shape[0]} dimensions, but {a.name} has {a.shape[0]}")


def aligned_chunks(
    features: Array, positives: Array | None, labels: Array | None
) -> Iterator[tuple[np.ndarray, np.ndarray | None, np.ndarray | None]]:
    """Yield chunks of the same rows; all but the last hold a multiple of GROUPS rows.

    Raises:
        CommandError: If an array ends before another, or a file is damaged.
    """
    others = [a for a in (positives, labels) if a is not None]
    for chunks in together(features, *others):
        rest = iter(chunks[1:])
        yield (
            chunks[0],
            next(rest) if positives is not None else None,
            next(rest) if labels is not None else None,
        )


def together(
    first: Array, *others: Array, rows: int | None = None
) -> Iterator[tuple[np.ndarray, ...]]:
    """Yield chunks of the same rows of each array, as long as :func:`aligned_chunks` makes them.

    Args:
        first: An array.
        others: More of them.
        rows: Another number of rows a chunk.

    Raises:
        CommandError: If an array ends before another, or a file is damaged.
    """
    rows = rows or max(1, CHUNK_BYTES // (8 * math.prod(first.shape) * GROUPS)) * GROUPS
    done = 0
    for chunks in zip_longest(*(array.chunks(rows) for array in (first, *others))):
        sizes = [0 if chunk is None else len(chunk) for chunk in chunks]
        for other, size in zip(others, sizes[1:], strict=True):
            check_rows(first, done + sizes[0], other, done + size)
        done += sizes[0]
        yield chunks


def classes_of(labels: Array) -> list[str]:
    """All distinct labels as text; numbers sort by value.

    Raises:
        CommandError: If a row has no label, or one too long for the name of a class.
    """
    found: set[str] = set()
    done = 0
    for chunk in labels.chunks(2**16):
        # numpy reserves the longest text's length for every row.
        if chunk.dtype == object and max(map(len, chunk)) > LONGEST_LABEL:
            raise CommandError(
                f"{labels.name}: has a label of more than {LONGEST_LABEL} characters"
            )
        text = chunk.astype(str)
        missing = np.isin(text, MISSING_LABELS)
        if missing.any():
            raise CommandError(
                f"{labels.name}: row {done + int(missing.argmax())} (counted from 0) has no label"
            )
        found.update(np.unique(text).tolist())
        done += len(text)
    return sorted(found, key=lambda label: (len(label), label))


def known_labels(path: Path, features: Array) -> tuple[Array | None, list[str]]:
    """Labels that stand beside the features under a name such as ``class``, and what to tell.

    Args:
        path: The features' file.
        features: What was found there.
    """
    names = [name for name in label_names(path) if name not in features.columns]
    if len(names) > 1:
        return None, [f"{path}: {listed(names)} could be labels; choose with --label-key"]
    for name in names:
        try:
            labels = find_array(path, name, dimensions=1, purpose="labels (--label-key)")
            if None not in (labels.rows, features.rows):
                check_rows(features, features.rows, labels, labels.rows)
            if next(labels.chunks(1)).dtype.kind == "f":
                raise CommandError(f"{labels.name}: holds decimals")
            classes = len(classes_of(labels))
        except CommandError as error:
            return None, [f"{name!r} is not taken as labels: {error}"]
        if classes > MOST_KNOWN_CLASSES:
            return None, [f"{labels.name}: is not taken as labels, as it has {classes} values"]
        return labels, [f"{labels.name}: is taken as labels; --label-key chooses others"]
    return None, []


def tensor_of(array: Array, chunk: np.ndarray, done: int, device: str) -> Tensor:
    """A chunk of features, starting at row ``done``: float64 as it is, all else as float32.

    Raises:
        CommandError: If they are not numbers or not finite.
    """
    if chunk.dtype.kind not in "fiu":
        raise CommandError(f"{array.name}: holds {chunk.dtype}, features are real numbers")
    dtype = np.float64 if chunk.dtype == np.float64 else np.float32
    x = torch.from_numpy(np.array(chunk, dtype=dtype)).to(device)
    bad = (~largest_entries(x).isfinite()).nonzero()
    if len(bad):
        raise CommandError(
            f"{array.name}: row {done + int(bad[0])} (counted from 0) holds NaN, infinite or "
            f"missing values; leave such rows out"
        )
    return x


def scores_of(array: Array, chunk: np.ndarray, done: int) -> np.ndarray:
    """A chunk of scores, starting at row ``done``, as float64.

    Raises:
        CommandError: If one is no finite number.
    """
    try:
        values = chunk.astype(np.float64)
    except ValueError as error:
        raise CommandError(f"{array.name}: a score is no number: {error}") from error
    if not np.isfinite(values).all():
        row = done + int(np.flatnonzero(~np.isfinite(values))[0])
        raise CommandError(f"{array.name}: row {row} (counted from 0) has no finite score")
    return values
