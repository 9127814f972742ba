"""Arrays by name, and how one is chosen."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from pathlib import Path

from hsplugin.checks import listed, unknown
from hsplugin.errors import CommandError
from hsplugin.readers.contents import Array, Wanted
from hsplugin.readers.pool import fitted

SHOWN_REASONS = 3


@dataclass(frozen=True)
class Arrays:
    """Arrays by name; the name is ``""`` where the file holds a single array without one.

    Attributes:
        path: The file, for messages.
        arrays: The arrays that can be measured.
        unusable: Why the others cannot, by name.
        hint: What could make one array of several, for messages.
    """

    path: Path
    arrays: dict[str, Array]
    unusable: dict[str, str] = field(default_factory=dict)
    hint: str = ""

    def pick(self, wanted: Wanted) -> Array:
        """Return the array called ``wanted.key``, or the only one with the right dimensions.

        Raises:
            CommandError: If there is none, or more than one.
        """
        arrays = self._called(wanted)
        fitting = [a for a in arrays.values() if len(a.shape) + 1 == wanted.dimensions]
        if wanted.pool is not None or not fitting:
            fitting = [f for a in arrays.values() if (f := fitted(a, wanted)) is not None]
        if len(fitting) == 1:
            return self._noted(fitting[0], arrays, wanted)
        deep = any(len(array.shape) + 1 > wanted.dimensions for array in arrays.values())
        remedy = ""
        if deep and not fitting and wanted.dimensions == 2:
            remedy = "; --pool mean, max, cls or flatten makes one vector of each row"
        remedy += self._reasons()
        if len(arrays) == 1:
            (array,) = arrays.values()
            shape = "(rows, dimensions)" if wanted.dimensions == 2 else "(rows,)"
            raise CommandError(
                f"{array.name}: {wanted.purpose} need shape {shape}, "
                f"this has {(array.rows, *array.shape)}{remedy}"
            )
        shapes = listed([f"{name} {(a.rows, *a.shape)}" for name, a in arrays.items()])
        raise CommandError(
            f"{self.path}: holds {shapes}; say which are the {wanted.purpose}{self.hint}{remedy}"
        )

    def names(self) -> list[str]:
        """The names of the arrays."""
        return list(self.arrays)

    def possible_labels(self) -> list[str]:
        """The names of arrays with one value a row."""
        return [name for name, array in self.arrays.items() if math.prod(array.shape) == 1]

    def _called(self, wanted: Wanted) -> dict[str, Array]:
        """The arrays that the key leaves; a nested one is called by the end of its name, too."""
        key = wanted.key
        if key is None:
            arrays = {name: a for name, a in self.arrays.items() if not _is_called(name, wanted)}
            if not arrays:
                raise CommandError(
                    f"{self.path}: holds nothing that could be the {wanted.purpose}"
                    f"{self._reasons()}"
                )
            return arrays
        if set(self.arrays) == {""} and not self.unusable:
            return self.arrays
        known = [*self.arrays, *self.unusable]
        called = [key] if key in known else [name for name in known if name.endswith("." + key)]
        if not called:
            raise CommandError(f"{self.path}: {unknown('array', key, known)}")
        for name in called:
            if name in self.unusable:
                raise CommandError(f"{self.path}[{name}]: {self.unusable[name]}")
        return {name: self.arrays[name] for name in called}

    def _noted(self, array: Array, arrays: dict[str, Array], wanted: Wanted) -> Array:
        """The array that is picked without a key, with a note of others that could be meant."""
        if wanted.key is not None or wanted.dimensions == 1:
            return array
        deep = {name: a.name for name, a in arrays.items() if len(a.shape) > 1}
        left = [name for name, called in deep.items() if called != array.name]
        left += [name for name in self.unusable if not _is_called(name, wanted)]
        if not left:
            return array
        note = f"{array.name}: is taken as the {wanted.purpose}; left out {listed(left)}"
        return replace(array, notes=(*array.notes, note))

    def _reasons(self) -> str:
        if not self.unusable:
            return ""
        first = list(self.unusable.items())[:SHOWN_REASONS]
        more = len(self.unusable) - len(first)
        shown = [f"{name or 'the array'} {reason}" for name, reason in first]
        return "; unusable: " + "; ".join(shown + ([f"{more} more"] if more else []))


def _is_called(name: str, wanted: Wanted) -> bool:
    """Whether an array is asked for by another key, which may be the end of its name."""
    return any(name == other or name.endswith("." + other) for other in wanted.others)
