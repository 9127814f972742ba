"""The error that a command shows to its user as one line."""


class CommandError(Exception):
    """A mistake of the user's or of the machine's: printed as one line, exit status 2."""
