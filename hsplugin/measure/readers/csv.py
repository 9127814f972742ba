"""Embeddings in the columns of a csv file."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from hsplugin.errors import CommandError
from hsplugin.measure.readers.contents import Array, missing_package
from hsplugin.measure.readers.table import Kind, Table

LONGEST_LINE = 16 * 2**20
# With more, pandas takes minutes and gigabytes for a file of megabytes.
MOST_COLUMNS = 2**16


def open_csv(path: Path) -> Table:
    """Open a csv file with or without a line of names; the first 100 rows tell what is a number.

    Raises:
        CommandError: If it has no rows, or its first lines do not belong to a table.
        ImportError: If pandas is missing.
    """
    try:
        import pandas as pd
    except ImportError as error:
        raise missing_package(".csv", "pandas", error) from error
    header = 0 if _are_names(_first_fields(path)) else None
    options: dict[str, Any] = {"compression": None, "header": header}
    head = pd.read_csv(path, nrows=100, **options)
    head.columns = head.columns.map(str)
    if head.empty:
        raise CommandError(f"{path}: has a line of names but no rows")
    columns = list(head.columns)
    kinds: dict[str, Kind] = {
        column: "number" if head[column].dtype.kind in "fiu" else "other" for column in columns
    }

    def array(chosen: list[str], shape: tuple[int, ...], **types: Any) -> Array:
        places = [columns.index(column) for column in chosen]

        def read(rows: int) -> Iterator[np.ndarray]:
            with pd.read_csv(path, usecols=places, chunksize=rows, **types, **options) as reader:
                for frame in reader:
                    yield frame.to_numpy().reshape(-1, *shape)

        return Array(str(path), None, shape, read)

    return Table(
        path,
        kinds,
        features=lambda chosen: array(chosen, (len(chosen),), dtype=np.float64),
        # Empty labels stay empty text, so that they are reported as missing labels.
        labels=lambda column: array([column], (), dtype=str, na_filter=False),
    )


def _first_fields(path: Path) -> list[str]:
    """The fields of the first line; the second line must have as many.

    If it has more, pandas would take the first ones for an index.

    Raises:
        CommandError: If the lines differ in length, or one is too long for a table.
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
    # pandas names the columns of a plain matrix by their numbers.
    if len(fields) > 1 and fields == [str(place) for place in range(len(fields))]:
        return True
    try:
        for field in fields:
            float(field)
    except ValueError:
        return True
    return False
