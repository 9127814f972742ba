"""Folders whose files are one table or one array: parts of rows, data sets, sharded tensors."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from hsplugin.checks import listed
from hsplugin.errors import CommandError
from hsplugin.readers.contents import Array, Contents, Wanted, rechunk
from hsplugin.readers.tensors import INDEX

# Files that describe others.
BESIDE = {".json", ".txt"}
# Numbers, and the long ones that writers make up to keep names apart.
NUMBERS = re.compile(r"[0-9a-f]{8}-?(?:[0-9a-f]{4}-?){3}[0-9a-f]{12}|\d+")


@dataclass(frozen=True)
class Parts:
    """Files that hold the rows of one array, one after another.

    Attributes:
        path: The folder, for messages.
        files: The files, in the order of their rows.
        opened: Opens one.
    """

    path: Path
    files: list[Path]
    opened: Callable[[Path], Contents]

    def pick(self, wanted: Wanted) -> Array:
        """Return the array that is asked for of each file, as one.

        Raises:
            CommandError: If a file has none, or one of another shape than the first.
        """
        arrays = [self.opened(file).pick(wanted) for file in self.files]
        first = arrays[0]
        for array in arrays:
            if (array.shape, array.columns) != (first.shape, first.columns):
                raise CommandError(
                    f"{array.name}: has other columns or another shape than {first.name}"
                )
        known = [array.rows for array in arrays if array.rows is not None]

        def read(rows: int) -> Iterator[np.ndarray]:
            return rechunk((chunk for array in arrays for chunk in array.read(rows)), rows)

        name = str(self.path) + first.name.removeprefix(str(self.files[0]))
        note = (
            f"{self.path}: holds the rows of {len(arrays)} files, {self.files[0].name} to "
            f"{self.files[-1].name}"
        )
        total = sum(known) if len(known) == len(arrays) else None
        return replace(first, name=name, rows=total, read=read, notes=(note, *first.notes))

    def names(self) -> list[str]:
        """The names in the first file."""
        return self.opened(self.files[0]).names()

    def possible_labels(self) -> list[str]:
        """Those of the first file."""
        return self.opened(self.files[0]).possible_labels()


def open_folder(path: Path, readers: dict[str, Callable[[Path], Contents]]) -> Contents:
    """Open a folder of parts, one that ``datasets`` saved, or one of sharded tensors.

    Raises:
        CommandError: If its files do not belong together, or none can be read.
    """
    files = sorted((f for f in path.iterdir() if f.is_file() and f.name[0] not in "._"), key=_place)
    names = [file.name for file in files]
    if "dataset_dict.json" in names:
        splits = sorted(f.name for f in path.iterdir() if f.is_dir())
        if len(splits) != 1:
            raise CommandError(
                f"{path}: holds the splits {listed(splits)}; give one of the folders"
            )
        return open_folder(path / splits[0], readers)
    indices = [file for file in files if file.name.endswith(INDEX)]
    if len(indices) == 1:
        return readers[INDEX](indices[0])
    if "state.json" in names:
        parts = _of_dataset(path)
    else:
        parts = [file for file in files if file.suffix.lower() in readers]
        parts = [file for file in parts if file.suffix.lower() not in BESIDE] or parts
    if not parts:
        folders = sorted(f.name for f in path.iterdir() if f.is_dir())
        inside = f" but the folders {listed(folders)}; give one of them" if folders else ""
        raise CommandError(f"{path}: is a folder without files that can be read{inside}")
    if len({NUMBERS.sub("#", file.name) for file in parts}) > 1:
        raise CommandError(
            f"{path}: is a folder of files that may not belong together, as their names differ in "
            f"more than numbers: {listed([file.name for file in parts])}; give one of them"
        )

    def opened(file: Path) -> Contents:
        return readers[file.suffix.lower()](file)

    return opened(parts[0]) if len(parts) == 1 else Parts(path, parts, opened)


def _of_dataset(path: Path) -> list[Path]:
    """The files that a data set of Hugging Face's consists of, in its own order."""
    listing = json.loads((path / "state.json").read_bytes()).get("_data_files", [])
    names = [str(entry["filename"]) for entry in listing]
    for name in names:
        if Path(name).name != name or Path(name).suffix != ".arrow":
            raise CommandError(
                f"{path}: state.json names {name[:100]!r}, which is no file beside it"
            )
        if not (path / name).is_file():
            raise CommandError(f"{path}: state.json names {name}, which is missing")
    return [path / name for name in names]


def _place(file: Path) -> list[tuple[int, str]]:
    """Sorts numbers in names by value."""
    return [
        (int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", file.name)
    ]
