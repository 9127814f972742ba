"""The callback that stands in for a monitor until the module's config is known."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hsplugin.monitor.callback import CALLBACKS, GeometryMonitor
from hsplugin.monitor.mixin import GeometryMonitorMixin
from hsplugin.monitor.options import config_options, tell


class OptInMonitor(*CALLBACKS):  # type: ignore[misc]
    """Replaces itself by a GeometryMonitor once the module's config, or the user, asks for one.

    Args:
        asked: The arguments that the environment asks for, or None; the config takes precedence.
    """

    def __init__(self, asked: Mapping[str, Any] | None) -> None:
        self.asked = asked

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Read the config and replace this callback; a mistake in it becomes a warning."""
        try:
            options = config_options(getattr(pl_module, "cfg", None), self.asked)
            if options is None:
                return
            if any(isinstance(callback, GeometryMonitorMixin) for callback in trainer.callbacks):
                return
            monitor = GeometryMonitor(**options)
        except Exception as error:
            tell(error)
            return
        # In place: Lightning is iterating over this list.
        trainer.callbacks[trainer.callbacks.index(self)] = monitor
        monitor.setup(trainer, pl_module, stage)
