"""Embeddings in files of tensors: torch.save's, and .safetensors with or without an index."""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hsplugin.errors import CommandError
from hsplugin.readers.arrays import Arrays
from hsplugin.readers.contents import Array, Contents, missing_package, rechunk
from hsplugin.readers.pickled import BFLOAT16, DTYPES, Inert, Stored, read_pickled
from hsplugin.readers.words import open_word2vec

INDEX = ".safetensors.index.json"
# Fewer vectors may be several columns rather than rows.
FEWEST_ROWS = 8
# Fewer tensors may be two views and something else, or a split for training and one for tests.
FEWEST_BATCHES = 4
MOST_TENSORS = 10**6


def open_bin(path: Path) -> Contents:
    """Open a .bin file: torch's, or else word2vec's."""
    with path.open("rb") as file:
        pickled = file.read(1) == pickle.PROTO
    return open_pt(path) if pickled or zipfile.is_zipfile(path) else open_word2vec(path)


def open_pt(path: Path) -> Arrays:
    """Open tensors that torch.save wrote, alone or in dicts and lists of any depth.

    A nested tensor is called by the names that lead to it, such as ``state_dict.item.weight``.
    The tensors of a list of batches, and the vectors of a list or dict, are the rows of one array.
    A list of text or whole numbers, as many as a tensor has rows, is an array of labels. Objects of
    other kinds are passed over, and never made.

    Raises:
        CommandError: If there is no tensor.
    """
    content, whole = read_pickled(path)
    arrays: dict[str, Array] = {}
    unusable: dict[str, str] = {}
    lists: dict[str, list[Any]] = {}
    others = False
    hint = ""
    # A list that holds itself, or one list a hundred times, is visited once.
    seen: set[int] = set()
    waiting: list[tuple[str, Any]] = [("", content)]
    while waiting:
        name, held = waiting.pop()
        if isinstance(held, Stored):
            problem = _problem(held)
            if problem:
                unusable[name] = problem
            elif held.shape:
                arrays[name] = _joined(path, name, [held], whole)
        elif isinstance(held, Inert):
            others = True
        elif isinstance(held, dict | list | tuple) and id(held) not in seen:
            seen.add(id(held))
            values = list(held.values()) if isinstance(held, dict) else list(held)
            if isinstance(held, list) and _are_labels(held):
                lists[name] = held
                continue
            if isinstance(held, list) and _starts_with_vector(held):
                unusable[name] = "is a list of lists of numbers; save torch.as_tensor(x)"
                continue
            if _are_rows(values, batches=not isinstance(held, dict)):
                arrays[name] = _joined(path, name, values, whole)
                continue
            if isinstance(held, list) and len(values) > 1 and isinstance(values[0], Stored):
                hint = "; if a list holds batches, save torch.cat(x), and if rows, torch.stack(x)"
            keys = list(held) if isinstance(held, dict) else [str(n) for n in range(len(held))]
            parts = [f"{name}.{key}" if name else key for key in keys]
            waiting += reversed(list(zip(parts, values, strict=True)))
        if len(arrays) > MOST_TENSORS:
            raise CommandError(f"{path}: holds more than {MOST_TENSORS} tensors")
    rows = {array.rows for array in arrays.values()}
    arrays |= {n: _listed(path, n, values) for n, values in lists.items() if len(values) in rows}
    if not arrays and not unusable:
        raise CommandError(
            f"{path}: holds no tensor{', but objects that are never made here' * others}; if "
            f"you trust it, convert it: x = torch.load({path.name!r}, weights_only=False); "
            f"torch.save({{'features': torch.as_tensor(...)}}, 'features.pt')"
        )
    return Arrays(path, arrays, unusable, hint)


def _are_labels(values: list[Any]) -> bool:
    return len(values) > 1 and (
        all(type(value) is int for value in values) or all(type(value) is str for value in values)
    )


def _starts_with_vector(values: list[Any]) -> bool:
    first = values[0] if values else None
    return isinstance(first, list) and bool(first) and isinstance(first[0], float)


def _listed(path: Path, name: str, values: list[Any]) -> Array:
    def read(size: int) -> Iterator[np.ndarray]:
        for start in range(0, len(values), size):
            yield np.array(values[start : start + size], dtype=object)

    return Array(f"{path}[{name}]", len(values), (), read)


def _problem(stored: Stored) -> str:
    """Why a tensor cannot be measured, or ""."""
    if stored.problem:
        return stored.problem
    if stored.dtype.startswith("c"):
        return "holds complex numbers, not real ones"
    if stored.dtype not in DTYPES.values():
        return f"holds {stored.dtype[:60]}, which numpy does not know; save x.float()"
    return f"is empty, its shape is {stored.shape}" if 0 in stored.shape else ""


def _are_rows(values: list[Any], batches: bool) -> bool:
    """Whether tensors are the rows of one array: vectors of one length, or batches if allowed.

    Batches are four or more, all but the last of one size and the last smaller; otherwise they
    could as well be views, tokens or splits.
    """
    tensors = [v for v in values if isinstance(v, Stored) and v.shape and not _problem(v)]
    if len(tensors) < 2 or len(tensors) < len(values):
        return False
    first, last = tensors[0], tensors[-1]
    if len({(t.dtype, len(t.shape), *t.shape[1:]) for t in tensors}) > 1:
        return False
    sizes = {t.shape[0] for t in tensors[:-1]}
    if len(first.shape) == 1:
        floats = first.dtype.startswith("f") or first.dtype == BFLOAT16
        return floats and len(tensors) >= FEWEST_ROWS and sizes == {last.shape[0]}
    many = batches and len(tensors) >= FEWEST_BATCHES
    return many and len(sizes) == 1 and last.shape[0] < first.shape[0]


def _joined(
    path: Path, name: str, tensors: list[Stored], whole: Callable[[Stored], np.ndarray]
) -> Array:
    label = f"{path}[{name}]" if name else str(path)
    vectors = len(tensors) > 1 and len(tensors[0].shape) == 1
    shape = tensors[0].shape if vectors else tensors[0].shape[1:]
    rows = len(tensors) if vectors else sum(tensor.shape[0] for tensor in tensors)

    def parts(size: int) -> Iterator[np.ndarray]:
        for tensor in tensors:
            values = whole(tensor)[None] if vectors else whole(tensor)
            for start in range(0, len(values), size):
                chunk = np.array(values[start : start + size])
                if tensor.dtype == BFLOAT16:
                    chunk = (chunk.astype(np.uint32) << 16).view(np.float32)
                yield chunk

    notes: tuple[str, ...] = ()
    if len(tensors) > 1:
        what = "vectors" if vectors else "tensors"
        notes = (f"{label}: its {len(tensors)} {what} are taken as {rows} rows",)
    return Array(label, rows, shape, lambda size: rechunk(parts(size), size), notes)


def open_safetensors(path: Path) -> Arrays:
    """Open the tensors of a .safetensors file, all but scalars.

    Raises:
        CommandError: If there is none.
        ImportError: If safetensors is missing.
    """
    try:
        from safetensors import safe_open
    except ImportError as error:
        raise missing_package(".safetensors", "safetensors", error) from error
    arrays: dict[str, Array] = {}
    unusable: dict[str, str] = {}
    with safe_open(path, framework="pt") as file:
        for key in file.keys():  # noqa: SIM118 - safe_open is not a mapping
            part = file.get_slice(key)
            shape = tuple(part.get_shape())
            if part.get_dtype().startswith("C"):
                unusable[key] = f"holds {part.get_dtype()}, not real numbers"
            elif 0 in shape:
                unusable[key] = f"is empty, its shape is {shape}"
            elif shape:
                arrays[key] = Array(f"{path}[{key}]", shape[0], shape[1:], _slices(part, shape[0]))
    if not arrays and not unusable:
        raise CommandError(f"{path}: holds no tensor")
    return Arrays(path, arrays, unusable)


def open_index(path: Path) -> Arrays:
    """Open the tensors of all files that a .safetensors.index.json names.

    Raises:
        CommandError: If it is no such index, or names files elsewhere.
    """
    mapping = json.loads(path.read_bytes()).get("weight_map", {})
    arrays: dict[str, Array] = {}
    unusable: dict[str, str] = {}
    for name in sorted(set(mapping.values())):
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise CommandError(f"{path}: names {name[:100]!r}, which is no file beside it")
        if not (path.parent / name).is_file():
            raise CommandError(f"{path}: names {name}, which is missing")
        shard = open_safetensors(path.parent / name)
        arrays |= shard.arrays
        unusable |= shard.unusable
    if not arrays:
        raise CommandError(f"{path}: names no file of tensors")
    return Arrays(path, arrays, unusable)


def _slices(part: Any, length: int) -> Callable[[int], Iterator[np.ndarray]]:
    def read(rows: int) -> Iterator[np.ndarray]:
        for start in range(0, length, rows):
            chunk = part[start : start + rows]
            if chunk.is_floating_point() and chunk.dtype != torch.float64:
                chunk = chunk.float()
            yield chunk.numpy()

    return read
