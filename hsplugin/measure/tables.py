"""Embeddings in the columns of csv and parquet tables."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np

from hsplugin.checks import unknown
from hsplugin.errors import CommandError
from hsplugin.measure.files import Array, check_packing

LONGEST_LINE = 16 * 2**20
# Of more, pandas takes minutes and gigabytes for a file of megabytes.
MOST_COLUMNS = 2**16
# What pandas writes beside the columns of a frame, or makes of it on reading; no feature.
INDEX_OF_PANDAS = re.compile(r"Unnamed: 0|__index_level_\d+__")


def match_columns(path: Path, key: str, columns: list[str]) -> list[str]:
    """The columns that a list of names and patterns means, in the table's order.

    Raises:
        CommandError: If one of them matches none.
    """
    chosen: set[str] = set()
    for pattern in key.split(","):
        matching = [c for c in columns if c == pattern or fnmatchcase(c, pattern)]
        if not matching:
            raise CommandError(f"{path}: {unknown('column', pattern, columns[:50])}")
        chosen.update(matching)
    return [column for column in columns if column in chosen]


def _one_column(path: Path, columns: list[str]) -> str:
    if len(columns) != 1:
        raise CommandError(
            f"{path}: labels are one column, but this is {len(columns)}: "
            f"{', '.join(columns[:10])}; name one"
        )
    return columns[0]


def _needs(package: str, suffix: str, error: ImportError) -> ImportError:
    return ImportError(
        f"reading {suffix} needs {package}: pip install 'hsplugin[measure]' ({error})"
    )


def _csv(path: Path, key: str | None, others: list[str], dimensions: int) -> Array:
    try:
        import pandas as pd
    except ImportError as error:
        raise _needs("pandas", ".csv", error) from error
    has_names = _are_names(_first_fields(path))
    options: dict[str, Any] = {"compression": None, "header": 0 if has_names else None}
    head = pd.read_csv(path, nrows=100, **options)
    head.columns = head.columns.map(str)
    if head.empty:
        raise CommandError(f"{path}: has a line of names but no rows")
    columns = list(head.columns)
    spoken_for = {c for other in others for c in match_columns(path, other, columns)}
    if key is not None:
        chosen = match_columns(path, key, columns)
    elif dimensions == 2:
        free = [c for c in columns if c not in spoken_for and not INDEX_OF_PANDAS.fullmatch(c)]
        chosen = [c for c in free if head[c].dtype.kind in "fiu"]
        if not chosen:
            raise CommandError(f"{path}: has no column of numbers")
    else:
        chosen = columns
    if dimensions == 1:
        chosen = [_one_column(path, chosen)]
    places = [columns.index(column) for column in chosen]

    def read(rows: int) -> Iterator[np.ndarray]:
        # An empty label is told by name; an empty number is NaN, which is refused as such.
        asked = {"dtype": np.float64} if dimensions == 2 else {"dtype": str, "na_filter": False}
        with pd.read_csv(path, usecols=places, chunksize=rows, **asked, **options) as reader:
            for chunk in reader:
                yield chunk.to_numpy() if dimensions == 2 else chunk.iloc[:, 0].to_numpy()

    return Array(str(path), None, (len(chosen),) if dimensions == 2 else (), read)


def _first_fields(path: Path) -> list[str]:
    """The first line's fields, of which the second has to have as many.

    Where it has more, pandas would take the first ones for an index.

    Raises:
        CommandError: If it has not, or a line is no line of a table.
    """
    rows: list[list[str]] = []
    with path.open("rb") as file:
        while len(rows) < 2 and (line := file.readline(LONGEST_LINE + 1)):
            if len(line) > LONGEST_LINE or line.count(b",") >= MOST_COLUMNS:
                raise CommandError(
                    f"{path}: has a line of more than {LONGEST_LINE} bytes or {MOST_COLUMNS} "
                    f"columns; is it a csv?"
                )
            # pandas skips empty lines.
            if text := line.decode("utf-8-sig").strip():
                rows += csv.reader([text])
    if len({len(row) for row in rows}) > 1:
        raise CommandError(
            f"{path}: its first line has {len(rows[0])} fields, its second {len(rows[1])}"
        )
    return rows[0] if rows else []


def _are_names(fields: list[str]) -> bool:
    # A pandas frame made of a matrix calls its columns by their numbers.
    if len(fields) > 1 and fields == [str(place) for place in range(len(fields))]:
        return True
    try:
        for field in fields:
            float(field)
    except ValueError:
        return True
    return False


def _parquet(path: Path, key: str | None, others: list[str], dimensions: int) -> Array:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise _needs("pyarrow", ".parquet", error) from error
    file = pq.ParquetFile(path, memory_map=True)
    for group in range(file.metadata.num_row_groups):
        for place in range(file.metadata.num_columns):
            part = file.metadata.row_group(group).column(place)
            check_packing(
                f"{path}[{part.path_in_schema}]",
                part.total_uncompressed_size,
                part.total_compressed_size,
            )
    schema = file.schema_arrow
    rows_in_file = int(file.metadata.num_rows)
    if rows_in_file == 0:
        raise CommandError(f"{path}: has no rows")

    def is_vector(column: str) -> bool:
        kind = schema.field(column).type
        vector = pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind)
        return vector or pa.types.is_large_list(kind)

    def is_number(column: str) -> bool:
        kind = schema.field(column).type
        return pa.types.is_floating(kind) or pa.types.is_integer(kind)

    spoken_for = {c for other in others for c in match_columns(path, other, list(schema.names))}
    free = [c for c in schema.names if c not in spoken_for and not INDEX_OF_PANDAS.fullmatch(c)]
    if key is not None:
        chosen = match_columns(path, key, list(schema.names))
    elif dimensions == 2:
        vectors = [c for c in free if is_vector(c)]
        if len(vectors) > 1:
            raise CommandError(
                f"{path}: has the vectors {', '.join(vectors)}; say which are the features"
            )
        chosen = vectors or [c for c in free if is_number(c)]
    else:
        chosen = list(schema.names)
    if dimensions == 1:
        chosen = [_one_column(path, chosen)]
    elif not chosen or not (all(map(is_number, chosen)) or [*map(is_vector, chosen)] == [True]):
        raise CommandError(
            f"{path}: features are columns of numbers or one of vectors, not "
            f"{', '.join(chosen[:10]) or 'none'}"
        )

    def matrix(batch: Any) -> np.ndarray:
        if dimensions == 1:
            return _text(batch.column(0))
        if not is_vector(chosen[0]):
            columns = [batch.column(name).to_numpy(zero_copy_only=False) for name in chosen]
            return np.stack([np.asarray(c, dtype=np.float64) for c in columns], axis=1)
        vectors = batch.column(0)
        if vectors.null_count or len(set(vectors.value_lengths().to_pylist())) > 1:
            raise CommandError(f"{path}[{chosen[0]}]: its vectors are not all of one length")
        if not len(vectors.flatten()):
            raise CommandError(f"{path}[{chosen[0]}]: its vectors are empty")
        values = np.asarray(vectors.flatten().to_numpy(zero_copy_only=False))
        return values.reshape(len(vectors), -1)

    def read(rows: int) -> Iterator[np.ndarray]:
        kept: list[np.ndarray] = []
        # As a dictionary, a text that every row has is in memory once.
        whole = pq.ParquetFile(
            path, memory_map=True, read_dictionary=chosen if dimensions == 1 else None
        )
        for batch in whole.iter_batches(rows, columns=chosen):
            kept.append(matrix(batch))
            # Batches end where row groups do; what is read in step has to be of one size.
            while sum(map(len, kept)) >= rows:
                joined = np.concatenate(kept)
                yield joined[:rows]
                kept = [joined[rows:]]
        if sum(map(len, kept)):
            yield np.concatenate(kept)

    dim: tuple[int, ...] = ()
    if dimensions == 2:
        dim = next(iter(matrix(b).shape[1:] for b in file.iter_batches(1, columns=chosen)))
    # Run lengths pack a constant without limit, whatever the metadata calls uncompressed.
    check_packing(str(path), rows_in_file * 4 * math.prod(dim), path.stat().st_size)
    return Array(str(path), rows_in_file, dim, read)


def _text(column: Any) -> np.ndarray:
    """Labels of a column of any kind, each different one a single object."""
    import pyarrow as pa

    encoded = column if pa.types.is_dictionary(column.type) else column.dictionary_encode()
    known = np.array([*map(str, encoded.dictionary.to_pylist()), "None"], dtype=object)
    return known[encoded.indices.fill_null(len(known) - 1).to_numpy(zero_copy_only=False)]


READERS: dict[str, Callable[[Path, str | None, list[str], int], Array]] = {
    ".csv": _csv,
    ".parquet": _parquet,
}
