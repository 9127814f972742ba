"""Keeps a monitor from ever stopping the training that it watches."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch

from hsplugin.monitor.taps import RefusedError

Hook = TypeVar("Hook", bound=Callable[..., Any])


class GeometryWarning(UserWarning):
    """The monitor cannot measure something, or what it measured looks like a collapse."""


def never_fatal(hook: Hook) -> Hook:
    """Turn any error in a hook into one warning, unless the monitor is strict."""

    @functools.wraps(hook)
    def guarded(self: Any, trainer: Any, pl_module: Any, *rest: Any) -> None:
        try:
            with torch.no_grad():
                hook(self, trainer, pl_module, *rest)
        except Exception as error:
            if self.strict:
                raise
            reason = str(error) if isinstance(error, RefusedError) else line(error)
            kind = type(error).__name__
            self._warn_once(kind, f"{type(pl_module).__name__} is not measured: {reason}")

    return guarded  # type: ignore[return-value]


def line(error: Exception) -> str:
    """The error in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
