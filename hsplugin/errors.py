"""Errors that a command shows to its user, and the suggestions that go with them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class CommandError(Exception):
    """A mistake of the user's or of the machine's: printed as one line, exit status 2."""


def unknown(what: str, given: str, known: Iterable[str]) -> str:
    """Say that a name is unknown, which near matches exist, and what is known.

    Args:
        what: What the name stands for, such as ``"method"``.
        given: The name as the user wrote it.
        known: Every name that would have been understood.

    Example:
        >>> unknown("method", "simclrr", ["simclr", "byol"])
        "unknown method 'simclrr'; did you mean simclr? Known: byol, simclr"
    """
    names = sorted(known)
    near = difflib.get_close_matches(given, names)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    return f"unknown {what} {given!r}; {hint}Known: {', '.join(names)}"
