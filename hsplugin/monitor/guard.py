"""What keeps a monitor from ever stopping the training that it watches."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from hsplugin.monitor.taps import RefusedError

if TYPE_CHECKING:
    from hsplugin.monitor import GeometryMonitorMixin

Hook = TypeVar("Hook", bound=Callable[..., Any])


class GeometryWarning(UserWarning):
    """What the monitor cannot measure, and what it measured that looks like a collapse."""


def never_fatal(hook: Hook) -> Hook:
    """Turn whatever goes wrong in a hook into one warning, unless the monitor is strict."""

    @functools.wraps(hook)
    def guarded(self: GeometryMonitorMixin, trainer: Any, pl_module: Any, *rest: Any) -> None:
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
    """What went wrong, in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
