"""The error that a command shows to its user as one line."""


class CommandError(Exception):
    """A mistake of the user or a fault of the machine: printed as one line, exit status 2."""
