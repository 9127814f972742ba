"""Embeddings in JSON: vectors, records, columns or vectors by name; and JSON lines."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from hsplugin.checks import listed
from hsplugin.errors import CommandError
from hsplugin.readers.arrow import table_of
from hsplugin.readers.contents import Array, missing_package
from hsplugin.readers.table import Table, family

LONGEST_LINE = 16 * 2**20
# In memory it may be twenty times as large.
LARGEST_FILE = 2**29
RECORDS_LOOKED_AT = 100
# Fewer lists by name are columns rather than vectors.
FEWEST_ROWS = 8
VECTORS = "vectors"


def open_json(path: Path) -> Table:
    """Open a JSON document, which is read whole.

    Raises:
        CommandError: If it holds no rows, is too large, or may be read in more than one way.
        ImportError: If pyarrow is missing.
    """
    pa = _pyarrow(path)
    if path.stat().st_size > LARGEST_FILE:
        raise CommandError(
            f"{path}: is larger than {LARGEST_FILE} bytes, and JSON must be read whole; write a "
            f"record a line (.jsonl), which is streamed"
        )
    try:
        content = json.loads(path.read_bytes())
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":
            return open_json_lines(path)
        raise
    note, columns = _columns(path, content)
    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) != 1:
        found = listed([f"{name} {length}" for name, length in lengths.items()])
        raise CommandError(
            f"{path}: holds no rows of one kind but lists of {found or 'no'} values; write a "
            f"record a line (.jsonl)"
        )
    if not set(lengths.values()) - {0}:
        raise CommandError(f"{path}: has no rows")
    whole = pa.table({name: _arrow(pa, values) for name, values in columns.items()})

    def batches(chosen: list[str], rows: int, labels: bool) -> Iterator[Any]:
        yield from whole.select(chosen).to_batches(rows)

    table = table_of(path, whole.schema, whole.num_rows, batches)
    if not note:
        return table

    def features(chosen: list[str]) -> Array:
        array = table.features(chosen)
        return replace(array, notes=(note, *array.notes))

    return replace(table, features=features)


def open_json_lines(path: Path) -> Table:
    """Open a file of a record, or of a vector, a line.

    Raises:
        CommandError: If the first lines are neither.
        ImportError: If pyarrow is missing.
    """
    pa = _pyarrow(path)
    head = list(islice(_records(path), RECORDS_LOOKED_AT))
    if not head:
        raise CommandError(f"{path}: has no rows")
    names = list(dict.fromkeys(name for record in head for name in record))
    schema = pa.schema([(n, _arrow(pa, [r.get(n) for r in head]).type) for n in names])

    def batches(columns: list[str], rows: int, labels: bool) -> Iterator[Any]:
        records = _records(path)
        while batch := list(islice(records, rows)):
            yield pa.record_batch([_arrow(pa, [r.get(n) for r in batch]) for n in columns], columns)

    return table_of(path, schema, None, batches)


def _pyarrow(path: Path) -> Any:
    try:
        import pyarrow
    except ImportError as error:
        raise missing_package(path.suffix, "pyarrow", error) from error
    return pyarrow


def _arrow(pa: Any, values: list[Any]) -> Any:
    """A column; what is of several types becomes text."""
    try:
        return pa.array(values)
    except (pa.ArrowException, OverflowError):
        return pa.array([None if value is None else json.dumps(value) for value in values])


def _records(path: Path) -> Iterator[dict[str, Any]]:
    with path.open("rb") as file:
        number = 0
        while line := file.readline(LONGEST_LINE + 1):
            number += 1
            if len(line) > LONGEST_LINE:
                raise CommandError(f"{path}: has a line of more than {LONGEST_LINE} bytes")
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except ValueError as error:
                raise CommandError(f"{path}: line {number} is no JSON: {error}") from error
            if isinstance(record, list):
                record = {VECTORS: record}
            if not isinstance(record, dict):
                raise CommandError(f"{path}: line {number} is neither a record nor a vector")
            yield record


def _columns(path: Path, content: Any) -> tuple[str, dict[str, list[Any]]]:
    """What to tell of it, and the columns of a document, each a list of values."""
    if isinstance(content, list):
        if content and all(isinstance(record, dict) for record in content):
            names = list(dict.fromkeys(n for r in content[:RECORDS_LOOKED_AT] for n in r))
            return "", {name: [record.get(name) for record in content] for name in names}
        return "", {VECTORS: content}
    if not isinstance(content, dict):
        raise CommandError(f"{path}: holds neither a list nor a record")
    heads, rows = content.get("columns"), content.get("data")
    if isinstance(heads, list) and isinstance(rows, list):
        if any(not isinstance(row, list) or len(row) != len(heads) for row in rows):
            raise CommandError(f"{path}: its rows and columns differ in length")
        return "", {str(n): list(c) for n, c in zip(heads, zip(*rows, strict=True), strict=True)}
    doubt = (
        f"{path}: cannot tell whether its {len(content)} lists are rows or columns; write a list "
        f"of rows, or a record a line (.jsonl)"
    )
    held = list(content.values())
    if _are_vectors(held):
        if all(family(name) for name in content):
            raise CommandError(doubt)
        if len(held) > max(len(held[0]), FEWEST_ROWS - 1):
            note = f"{path}: its {len(held)} lists are taken as rows"
            return note, {VECTORS: held, "names": list(content)}
    if len(held) >= FEWEST_ROWS and all(
        isinstance(record, dict) and record and record.keys() == held[0].keys() for record in held
    ):
        # Pandas writes numbers by column and row or by row and column.
        numbers = not any(isinstance(value, list | dict | str) for value in held[0].values())
        if not all(map(str.isdigit, held[0])):
            if numbers and any(family(name) for name in content):
                raise CommandError(doubt)
            note = f"{path}: its {len(held)} records are taken as rows"
            return note, {"names": list(content)} | _columns(path, held)[1]
        if all(map(str.isdigit, content)) and len(held) > len(held[0]):
            raise CommandError(doubt)
    # Beside lists of as many values they are a column, such as of metadata.
    tables = [value for value in held if _are_records(value)]
    if len(tables) == 1 and [_length(value) for value in held].count(len(tables[0])) == 1:
        return _columns(path, tables[0])
    note = ""
    columns: dict[str, list[Any]] = {}
    places: list[str] = []
    for name, value in content.items():
        if isinstance(value, list):
            columns[name] = value
        elif isinstance(value, dict) and all(map(str.isdigit, value)):
            # Pandas writes the values of a column by their places.
            places = places or list(value)
            if list(value) != places:
                raise CommandError(f"{path}: {name[:60]} has other rows than the columns before")
            columns[name] = list(value.values())
        elif isinstance(value, dict):
            said, nested = _columns(path, value)
            columns |= {f"{name}.{inner}": values for inner, values in nested.items()}
            note = note or said
    return note, columns


def _length(value: Any) -> int | None:
    return len(value) if isinstance(value, list) else None


def _are_records(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(r, dict) for r in value)


def _are_vectors(values: list[Any]) -> bool:
    """Whether values are lists of numbers, all of one length."""
    return len(values) > 1 and all(
        isinstance(value, list)
        and len(value) == len(values[0])
        and len(value) > 1
        and all(isinstance(number, float | int) for number in value)
        for value in values
    )
