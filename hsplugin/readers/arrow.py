"""Features and labels in Arrow's record batches, from whatever file they come."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from hsplugin.checks import listed
from hsplugin.errors import CommandError
from hsplugin.readers.contents import Array, rechunk
from hsplugin.readers.table import Kind, Table

# From the columns that are needed, a number of rows and whether they are labels, to the batches.
# Batches may be of any size.
Batches = Callable[[list[str], int, bool], Iterator[Any]]
ROWS_LOOKED_AT = 20
BRACKETS = {"[": "]", "(": ")", "{": "}"}
WRAPPED = re.compile(r"(?:np\.|numpy\.)?array\((.*?)(?:,\s*dtype=[\w.]+)?\)", re.DOTALL)
NO_VALUE = re.compile(r"(^|,)\s*(,|$)")
NUMPY_SCALAR = re.compile(r"np\.float\d+\(([^()]*)\)")


def table_of(
    path: Path, schema: Any, rows: int | None, batches: Batches, *, named: bool = True
) -> Table:
    """The table of a file that yields record batches; a field of a struct is a column ``a.b``.

    Args:
        path: The file, for messages.
        schema: The columns and their types.
        rows: How many there are, or None if the file does not say.
        batches: Yields the batches of some columns.
        named: Whether the file gives the names of its columns.
    """
    places: dict[str, tuple[str, list[int]]] = {}
    kinds: dict[str, Kind] = {}
    texts: list[str] = []
    for name, top, inside, kind in _leaves(schema):
        places[name] = (top, inside)
        kinds[name] = _kind(kind)
        if _is_text(kind):
            texts.append(name)

    def read(columns: list[str], size: int, labels: bool = False) -> Iterator[list[Any]]:
        tops = list(dict.fromkeys(places[column][0] for column in columns))
        for batch in batches(tops, size, labels):
            if len(batch):
                # By name, Arrow would look through all columns for each.
                held = dict(zip(batch.schema.names, batch.columns, strict=True))
                yield [_inside(held[places[c][0]], places[c][1]) for c in columns]

    if texts:
        for head in read(texts, ROWS_LOOKED_AT):
            for name, column in zip(texts, head, strict=True):
                looked_at = column[:ROWS_LOOKED_AT].to_pylist()
                if are_vectors(looked_at):
                    whole = not any(text and re.search("[.en]", text) for text in looked_at)
                    kinds[name] = "integers" if whole else "vector"
            break

    def features(columns: list[str]) -> Array:
        stacked = len(columns) > 1 or kinds[columns[0]] in ("float", "integer")
        odd = [column for column in columns if kinds[column] not in ("float", "integer")]
        if stacked and odd:
            raise CommandError(
                f"{path}: features are columns of numbers or one of vectors, not {listed(odd)}"
            )
        name = str(path) if stacked else f"{path}[{columns[0]}]"

        def arrays(size: int) -> Iterator[np.ndarray]:
            done = 0
            for batch in read(columns, size):
                parts = [_numbers(column, name, done) for column in batch]
                yield np.stack(parts, axis=1, dtype=np.float64) if stacked else parts[0]
                done += len(batch[0])

        return _array(path, name, rows, arrays, tuple(columns))

    def labels(column: str) -> Array:
        def arrays(size: int) -> Iterator[np.ndarray]:
            return (_labels(batch) for (batch,) in read([column], size, True))

        return Array(f"{path}[{column}]", rows, (), lambda size: rechunk(arrays(size), size))

    return Table(path, kinds, features, labels, named)


def _array(
    path: Path,
    name: str,
    rows: int | None,
    arrays: Callable[[int], Iterator[np.ndarray]],
    columns: tuple[str, ...],
) -> Array:
    first = next(arrays(1), None)
    if first is None:
        raise CommandError(f"{path}: has no rows")
    shape = first.shape[1:]
    if 0 in shape:
        raise CommandError(f"{name}: its vectors are empty")

    def alike(size: int) -> Iterator[np.ndarray]:
        done = 0
        for chunk in arrays(size):
            if chunk.shape[1:] != shape:
                raise CommandError(
                    f"{name}: row {done} (counted from 0) has {math.prod(chunk.shape[1:])} values, "
                    f"row 0 has {math.prod(shape)}"
                )
            done += len(chunk)
            yield chunk

    def read(size: int) -> Iterator[np.ndarray]:
        return rechunk(alike(size), size)

    return Array(name, rows, shape, read, columns=columns)


def _numbers(column: Any, name: str, done: int) -> np.ndarray:
    """The values of a column of numbers, or of vectors of one length in lists or in text.

    Args:
        column: An array of Arrow's.
        name: What it is called in messages.
        done: How many rows came before.

    Raises:
        CommandError: If a row has no vector, one of another length, or one that is no vector.
    """
    import pyarrow as pa

    if isinstance(column, pa.FixedShapeTensorArray) and not column.null_count:
        return column.to_numpy_ndarray()
    if isinstance(column, pa.ExtensionArray):
        column = column.storage
    kind = column.type
    if pa.types.is_floating(kind) or pa.types.is_integer(kind):
        return np.asarray(column.to_numpy(zero_copy_only=False))
    if column.null_count:
        missing = column.is_null().to_pylist().index(True)
        raise CommandError(
            f"{name}: row {done + missing} (counted from 0) has no vector but null; leave such "
            f"rows out"
        )
    if _is_text(kind):
        vectors = [
            _vector_of(text, name, done + row) for row, text in enumerate(column.to_pylist())
        ]
        return np.stack(_of_one_length(vectors, name, done))
    if not _is_list(kind):
        raise CommandError(
            f"{name}: holds {str(kind)[:60]}, not numbers, vectors or vectors as text"
        )
    lengths = (
        np.full(len(column), kind.list_size)
        if pa.types.is_fixed_size_list(kind)
        else column.value_lengths().to_numpy(zero_copy_only=False)
    )
    if (odd := lengths != lengths[0]).any():
        row = int(odd.argmax())
        raise CommandError(
            f"{name}: its vectors are not all of one length: row {done + row} (counted from 0) has "
            f"{lengths[row]} values, others have {lengths[0]}"
        )
    inner = _numbers(column.flatten(), name, done)
    return inner.reshape(len(column), int(lengths[0]), *inner.shape[1:])


def _vector_of(text: str, name: str, row: int) -> np.ndarray:
    """The vector that a text such as ``[0.1, 0.2]`` or numpy's ``[0.1 0.2]`` holds.

    Raises:
        CommandError: If it holds none, or one that numpy has shortened.
    """
    inside = text.strip()
    if wrapped := WRAPPED.fullmatch(inside):
        inside = wrapped[1].strip()
    inside = NUMPY_SCALAR.sub(r"\1", inside)
    if inside and BRACKETS.get(inside[0]) == inside[-1]:
        inside = inside[1:-1].strip()
    where = f"{name}: row {row} (counted from 0)"
    if "..." in inside:
        raise CommandError(
            f"{where} is a vector that numpy has shortened ('...') when it became text; the values "
            f"are lost, write x.tolist() instead"
        )
    separator = "," if "," in inside else " "
    expected = inside.count(",") + 1 if separator == "," else len(inside.split())
    try:
        vector = np.fromstring(inside, dtype=np.float64, sep=separator)
    except ValueError:
        vector = np.empty(0)
    if NO_VALUE.search(inside) or len(vector) != expected:
        shown = text if len(text) < 40 else text[:40] + "..."
        raise CommandError(f"{where} is no vector as text such as '[0.1, 0.2]' but {shown!r}")
    return vector


def _of_one_length(vectors: list[np.ndarray], name: str, done: int) -> list[np.ndarray]:
    for row, vector in enumerate(vectors):
        if len(vector) != len(vectors[0]):
            raise CommandError(
                f"{name}: its vectors are not all of one length: row {done + row} (counted from 0) "
                f"has {len(vector)} values, others have {len(vectors[0])}"
            )
    return vectors


def are_vectors(texts: list[str | None]) -> bool:
    """Whether all texts stand in brackets that hold a number first."""
    there = [text.strip() for text in texts if text is not None]
    opening = r"(?:(?:np\.|numpy\.)?array\()?[\[({]\s*(?:np\.float\d+\()?[-+]?\.?\d"
    return bool(there) and all(re.match(opening, text) and text[-1] in "])}" for text in there)


def _leaves(schema: Any) -> Iterator[tuple[str, str, list[int], Any]]:
    """Name, column, place within it and type of each field that is no struct."""
    import pyarrow as pa

    waiting = [(field.name, field.name, list[int](), field.type) for field in reversed(schema)]
    if len({top for _, top, _, _ in waiting}) < len(waiting):
        raise CommandError("has two columns of one name; rename one")
    while waiting:
        name, top, inside, kind = waiting.pop()
        if pa.types.is_struct(kind):
            waiting += [
                (f"{name}.{kind.field(i).name}", top, [*inside, i], kind.field(i).type)
                for i in reversed(range(kind.num_fields))
            ]
        else:
            yield name, top, inside, kind


def _inside(column: Any, inside: list[int]) -> Any:
    import pyarrow.compute as pc

    return pc.struct_field(column, inside) if inside else column


def _is_list(kind: Any) -> bool:
    from pyarrow import types

    return types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)


def _is_text(kind: Any) -> bool:
    from pyarrow import types

    return types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)


def _kind(kind: Any) -> Kind:
    import pyarrow as pa

    if isinstance(kind, pa.BaseExtensionType):
        kind = kind.storage_type
    if pa.types.is_floating(kind):
        return "float"
    if pa.types.is_integer(kind):
        return "integer"
    if not _is_list(kind):
        return "other"
    while _is_list(kind):
        kind = kind.value_type
    # Of eight bits they are quantised vectors.
    if pa.types.is_floating(kind) or kind in (pa.int8(), pa.uint8()):
        return "vector"
    return "integers" if pa.types.is_integer(kind) else "other"


def _labels(column: Any) -> np.ndarray:
    """Labels of a column of any kind, each different one a single object."""
    import pyarrow as pa

    encoded = column if pa.types.is_dictionary(column.type) else column.dictionary_encode()
    known = np.array([*map(str, encoded.dictionary.to_pylist()), "None"], dtype=object)
    return known[encoded.indices.fill_null(len(known) - 1).to_numpy(zero_copy_only=False)]
