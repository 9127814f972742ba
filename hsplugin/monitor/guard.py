"""Keeps a monitor from ever stopping the training that it watches."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator

import torch

from hsplugin.monitor.views import RefusedError


class GeometryWarning(UserWarning):
    """The monitor cannot measure something, or what it measured looks like a collapse."""


class Guard:
    """Turns any error into one warning, unless the monitor is strict.

    Args:
        strict: Raise errors instead.
    """

    def __init__(self, strict: bool) -> None:
        self.strict = strict
        self._warned: set[tuple[str, str]] = set()

    @contextlib.contextmanager
    def __call__(self, name: str, module: str) -> Iterator[None]:
        """Run a block without gradients; an error in it means that the module is not measured."""
        try:
            with torch.no_grad():
                yield
        except Exception as error:
            if self.strict:
                raise
            reason = str(error) if isinstance(error, RefusedError) else line(error)
            self.warn_once(name, type(error).__name__, f"{module} is not measured: {reason}")

    def warn_once(self, name: str, kind: str, message: str) -> None:
        """Warn of each kind of problem with what is watched under a name once."""
        if (name, kind) not in self._warned:
            self._warned.add((name, kind))
            warnings.warn(f"{name} monitor: {message}", GeometryWarning, stacklevel=4)


def line(error: Exception) -> str:
    """The error in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
