"""Columns of a table: which of them are features and which is chosen."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal

from hsplugin.checks import listed, unknown
from hsplugin.errors import CommandError
from hsplugin.readers.contents import Array, Wanted
from hsplugin.readers.pool import fitted

# "integers" are vectors of integers, which may be tokens; "mixed" are numbers and text.
Kind = Literal["float", "integer", "vector", "integers", "mixed", "other"]
LABEL_NAMES = ("label", "labels", "target", "targets", "class", "classes", "y")
# Families of such names are seldom features.
NO_FEATURES = {*LABEL_NAMES, "id", "index", "level", "score", "prob", "logit", "token", "unnamed"}
# Columns that pandas adds for a frame's index; they are neither features nor worth a note.
INDEX_OF_PANDAS = re.compile(r"(Unnamed: 0(\.\d+)*)?|(__index_level|level)_\d+(__)?")
# Fewer integers side by side may be anything.
FEWEST_INTEGERS = 8


@dataclass(frozen=True)
class Table:
    """The columns of a table.

    Attributes:
        path: The file, for messages.
        kinds: What each column holds, in the table's order.
        features: From columns to the features that they form.
        labels: From a column to its values as labels.
        named: Whether the file gives the columns' names.
    """

    path: Path
    kinds: dict[str, Kind]
    features: Callable[[list[str]], Array]
    labels: Callable[[str], Array]
    named: bool = True

    def pick(self, wanted: Wanted) -> Array:
        """Return the columns that the key names; without one, those that can only be features.

        Raises:
            CommandError: If a name or pattern matches nothing, or the columns do not fit.
        """
        if wanted.dimensions == 1:
            return self.labels(self._only(wanted.key))
        if wanted.key is not None:
            array = self.features(self.matching(wanted.key))
        else:
            taken = {column for key in wanted.others for column in self.matching(key)}
            taken |= {column for column in self.kinds if INDEX_OF_PANDAS.fullmatch(column)}
            array = self._evident([c for c in self.kinds if c not in taken], wanted)
        found = fitted(array, wanted)
        if found is None:
            raise CommandError(
                f"{array.name}: {wanted.purpose} need shape (rows, dimensions), this has "
                f"{(array.rows, *array.shape)}, as its lists are nested; --pool mean, max, cls or "
                f"flatten makes one vector of each row"
            )
        return found

    def names(self) -> list[str]:
        """The names of the columns."""
        return list(self.kinds)

    def possible_labels(self) -> list[str]:
        """The names of columns of text or whole numbers."""
        return [name for name, kind in self.kinds.items() if kind in ("integer", "other")]

    def matching(self, key: str) -> list[str]:
        """The columns that a list of names and patterns matches, in the table's order.

        A numbered family is in the order of its numbers: in another table it may stand in another.
        A pattern after an exclamation mark leaves out what it matches.

        Raises:
            CommandError: If one of them matches none.
        """
        chosen: set[str] = set()
        for pattern in [key] if key in self.kinds else key.split(","):
            without = pattern.startswith("!") and pattern not in self.kinds
            asked = pattern[1:] if without else pattern
            found = {asked} if asked in self.kinds else set()
            found = found or {c for c in self.kinds if fnmatchcase(c, asked)}
            if not found:
                raise CommandError(f"{self.path}: {unknown('column', asked, self.kinds)}")
            chosen = chosen - found if without else chosen | found
        return _by_number([column for column in self.kinds if column in chosen])

    def _only(self, key: str | None) -> str:
        columns = list(self.kinds) if key is None else self.matching(key)
        if len(columns) != 1:
            raise CommandError(
                f"{self.path}: labels are one column, but this is {len(columns)}: "
                f"{listed(columns)}; name one"
            )
        return columns[0]

    def _evident(self, free: list[str], wanted: Wanted) -> Array:
        """The features, if only one vector or one numbered family of columns could be them.

        Raises:
            CommandError: If none or several could.
        """
        vectors = [[column] for column in free if self.kinds[column] == "vector"]
        families = [f for f in self._families(free) if self._is_evident(f)]
        candidates = vectors + families
        if len(candidates) != 1:
            reason = "there is no column of vectors and no numbered family such as x0, x1, x2"
            whole = [column for column in free if self.kinds[column] == "integer"]
            if whole and not self.named:
                reason = f"{listed(whole)} may be ids or labels, as only whole numbers stand there"
            if candidates:
                reason = f"they could be {listed([_span(columns) for columns in candidates])}"
            raise CommandError(
                f"{self.path}: cannot tell which columns are the {wanted.purpose}: {reason}; name "
                f"them, or give patterns such as 'x*' or '*,!id'; its columns are "
                f"{listed([f'{name} ({self.kinds[name]})' for name in free])}"
            )
        (columns,) = candidates
        for column in self._beside(columns, free):
            raise CommandError(
                f"{self.path}: column {column} stands among {_span(columns)} but holds text or "
                f"nothing; mend it, or say which are the {wanted.purpose}, such as '*,!{column}'"
            )
        array = self.features(columns)
        chosen = set(columns)
        left = [name for name in free if name not in chosen]
        if not left:
            return array
        note = f"{self.path}: features are {_span(columns)}; left out {listed(left)}"
        return replace(array, notes=(note, *array.notes))

    def _families(self, free: list[str]) -> list[list[str]]:
        """Columns of numbers whose names differ in the number at the end only."""
        families: dict[str, list[str]] = {}
        for column in free:
            if self.kinds[column] not in ("float", "integer"):
                continue
            # Pandas calls columns of one name e, e.1, e.2.
            repeated = f"{column}.1" in self.kinds and f"{column}.0" not in self.kinds
            if pattern := f"{column}.#" if repeated else family(column):
                families.setdefault(pattern, []).append(column)
        return [_by_number(columns) for columns in families.values() if len(columns) > 1]

    def _is_evident(self, columns: list[str]) -> bool:
        whole = [column for column in columns if self.kinds[column] == "integer"]
        if re.sub(r"[^a-z]", "", family(columns[-1]).lower()) in NO_FEATURES:
            return False
        # In a file without names a lone column of integers may be an id.
        if not self.named:
            return not whole
        return len(whole) < len(columns) or len(columns) >= FEWEST_INTEGERS

    def _beside(self, columns: list[str], free: list[str]) -> list[str]:
        """Columns of the family that hold other things than numbers."""
        pattern = family(columns[-1])
        if len(columns) == 1 or not pattern:
            return []
        odd = ("mixed", "other") if self.named else ("mixed",)
        return [c for c in free if self.kinds[c] in odd and family(c) == pattern]


def family(column: str) -> str:
    """The pattern of a name with a number at its end, such as ``x#``; "" for other names."""
    found = re.fullmatch(r"(.*?)\d+", column, re.DOTALL)
    return found[1] + "#" if found else ""


def _by_number(columns: list[str]) -> list[str]:
    """Columns of one family in the order of their numbers, others as they are."""
    patterns = {family(column) for column in columns}
    if len(patterns) != 1 or "" in patterns:
        return columns
    start = len(patterns.pop()) - 1
    return sorted(columns, key=lambda column: int(column[start:]))


def _span(columns: list[str]) -> str:
    return columns[0] if len(columns) == 1 else f"{columns[0]} to {columns[-1]}"
