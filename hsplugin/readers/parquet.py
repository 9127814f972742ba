"""Embeddings in the columns of a parquet file."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from hsplugin.errors import CommandError
from hsplugin.readers.arrow import table_of
from hsplugin.readers.contents import Array, check_packing, missing_package
from hsplugin.readers.table import Table


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
    rows = int(file.metadata.num_rows)
    if rows == 0:
        raise CommandError(f"{path}: has no rows")

    def batches(columns: list[str], size: int, labels: bool) -> Iterator[Any]:
        # As a dictionary, a text that every row has is in memory once.
        options = {"read_dictionary": columns} if labels else {}
        opened = pq.ParquetFile(path, memory_map=True, **options)
        return opened.iter_batches(min(size, rows), columns=columns)

    table = table_of(path, file.schema_arrow, rows, batches)

    def features(columns: list[str]) -> Array:
        array = table.features(columns)
        # Run lengths pack a constant without limit, whatever the metadata gives as its size.
        check_packing(str(path), rows * 4 * math.prod(array.shape), path.stat().st_size)
        return array

    return replace(table, features=features)
