"""The lines that a command shows to its user: the error that ends it, and remarks."""

import sys


class CommandError(Exception):
    """A mistake of the user or a fault of the machine: printed as one line, exit status 2."""


def remark(text: str) -> None:
    """Tell the user something on stderr, while the command goes on."""
    print(f"hsplugin: {text}", file=sys.stderr)
