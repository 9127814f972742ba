"""Columns of a table, chosen by names and patterns."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal

from hsplugin.checks import unknown
from hsplugin.errors import CommandError
from hsplugin.measure.readers.contents import Array, Wanted

Kind = Literal["number", "vector", "other"]
# Columns that pandas adds for a frame's index; they are not features.
INDEX_OF_PANDAS = re.compile(r"Unnamed: 0|__index_level_\d+__")


@dataclass(frozen=True)
class Table:
    """The columns of a table.

    Attributes:
        path: The file, for messages.
        kinds: What each column holds, in the table's order.
        features: From columns to the matrix of features that they form.
        labels: From a column to its values as labels.
    """

    path: Path
    kinds: dict[str, Kind]
    features: Callable[[list[str]], Array]
    labels: Callable[[str], Array]

    def pick(self, wanted: Wanted) -> Array:
        """Return the columns that the key names; without one, the vectors or else all numbers.

        Raises:
            CommandError: If a name or pattern matches nothing, or the columns do not fit.
        """
        taken = {column for key in wanted.others for column in self.matching(key)}
        if wanted.dimensions == 1:
            return self.labels(self._only(wanted.key))
        if wanted.key is not None:
            return self.features(self.matching(wanted.key))
        free = [c for c in self.kinds if c not in taken and not INDEX_OF_PANDAS.fullmatch(c)]
        vectors = [column for column in free if self.kinds[column] == "vector"]
        if len(vectors) > 1:
            raise CommandError(
                f"{self.path}: has the vectors {', '.join(vectors)}; say which are the features"
            )
        columns = vectors or [column for column in free if self.kinds[column] == "number"]
        if not columns:
            raise CommandError(f"{self.path}: has no column of numbers or vectors")
        return self.features(columns)

    def names(self) -> list[str]:
        """Return the names of the columns."""
        return list(self.kinds)

    def matching(self, key: str) -> list[str]:
        """The columns that a list of names and patterns matches, in the table's order.

        Raises:
            CommandError: If one of them matches none.
        """
        chosen: set[str] = set()
        for pattern in key.split(","):
            matching = {c for c in self.kinds if c == pattern or fnmatchcase(c, pattern)}
            if not matching:
                raise CommandError(f"{self.path}: {unknown('column', pattern, [*self.kinds][:50])}")
            chosen |= matching
        return [column for column in self.kinds if column in chosen]

    def _only(self, key: str | None) -> str:
        columns = list(self.kinds) if key is None else self.matching(key)
        if len(columns) != 1:
            raise CommandError(
                f"{self.path}: labels are one column, but this is {len(columns)}: "
                f"{', '.join(columns[:10])}; name one"
            )
        return columns[0]
