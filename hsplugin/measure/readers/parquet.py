"""Embeddings in the columns of a parquet file."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from hsplugin.errors import CommandError
from hsplugin.measure.readers.contents import Array, check_packing, missing_package
from hsplugin.measure.readers.table import Kind, Table


def open_parquet(path: Path) -> Table:
    """Open a parquet file with one column a dimension, or with a column of vectors.

    Raises:
        CommandError: If it has no rows, or unpacks to far more than embeddings could.
        ImportError: If pyarrow is missing.
    """
    try:
        import pyarrow.parquet as pq
    except ImportError as error:
        raise missing_package(".parquet", "pyarrow", error) from error
    file = pq.ParquetFile(path, memory_map=True)
    for group in range(file.metadata.num_row_groups):
        for place in range(file.metadata.num_columns):
            part = file.metadata.row_group(group).column(place)
            check_packing(
                f"{path}[{part.path_in_schema}]",
                part.total_uncompressed_size,
                part.total_compressed_size,
            )
    if file.metadata.num_rows == 0:
        raise CommandError(f"{path}: has no rows")
    kinds = {name: _kind(file.schema_arrow.field(name).type) for name in file.schema_arrow.names}

    def features(columns: list[str]) -> Array:
        convert: Callable[[Any], np.ndarray] = partial(_numbers, columns)
        if [kinds[column] for column in columns] == ["vector"]:
            convert = partial(_vectors, f"{path}[{columns[0]}]")
        elif any(kinds[column] != "number" for column in columns):
            raise CommandError(
                f"{path}: features are columns of numbers or one of vectors, not "
                f"{', '.join(columns[:10])}"
            )
        first = convert(next(file.iter_batches(1, columns=columns)))
        return array(first.shape[1:], columns, convert)

    def labels(column: str) -> Array:
        # As a dictionary, a text that every row has is in memory once.
        return array((), [column], _text, read_dictionary=[column])

    def array(shape: Any, columns: list[str], convert: Any, **options: Any) -> Array:
        # Run lengths pack a constant without limit, whatever the metadata gives as its size.
        rows_in_file = int(file.metadata.num_rows)
        check_packing(str(path), rows_in_file * 4 * math.prod(shape), path.stat().st_size)

        def read(rows: int) -> Iterator[np.ndarray]:
            whole = pq.ParquetFile(path, memory_map=True, **options)
            batches = map(convert, whole.iter_batches(rows, columns=columns))
            return _rechunk(batches, rows)

        return Array(str(path), rows_in_file, shape, read)

    return Table(path, kinds, features, labels)


def _kind(column: Any) -> Kind:
    import pyarrow.types as types

    if types.is_list(column) or types.is_fixed_size_list(column) or types.is_large_list(column):
        return "vector"
    return "number" if types.is_floating(column) or types.is_integer(column) else "other"


def _numbers(names: list[str], batch: Any) -> np.ndarray:
    columns = [batch.column(name).to_numpy(zero_copy_only=False) for name in names]
    return np.stack([np.asarray(column, dtype=np.float64) for column in columns], axis=1)


def _vectors(name: str, batch: Any) -> np.ndarray:
    vectors = batch.column(0)
    if vectors.null_count or len(set(vectors.value_lengths().to_pylist())) > 1:
        raise CommandError(f"{name}: its vectors are not all of one length")
    values = np.asarray(vectors.flatten().to_numpy(zero_copy_only=False))
    if not len(values):
        raise CommandError(f"{name}: its vectors are empty")
    return values.reshape(len(vectors), -1)


def _text(batch: Any) -> np.ndarray:
    """Labels of a column of any kind, each different one a single object."""
    import pyarrow as pa

    column = batch.column(0)
    encoded = column if pa.types.is_dictionary(column.type) else column.dictionary_encode()
    known = np.array([*map(str, encoded.dictionary.to_pylist()), "None"], dtype=object)
    return known[encoded.indices.fill_null(len(known) - 1).to_numpy(zero_copy_only=False)]


def _rechunk(batches: Iterator[np.ndarray], rows: int) -> Iterator[np.ndarray]:
    """Yield chunks of equal size; batches end where row groups do."""
    kept: list[np.ndarray] = []
    for batch in batches:
        kept.append(batch)
        while sum(map(len, kept)) >= rows:
            joined = np.concatenate(kept)
            yield joined[:rows]
            kept = [joined[rows:]]
    if sum(map(len, kept)):
        yield np.concatenate(kept)
