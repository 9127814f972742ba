"""The geometry monitor for scripts that build their own Trainer: asked for, never imposed.

Lightning calls :func:`callbacks` for every Trainer of every program on the machine (entry-point
group ``lightning.pytorch.callbacks_factory``). The monitor joins in if the environment has
``HSPLUGIN_MONITOR=1``, or if the module being trained has a config, as solo-learn's methods do,
with a section ``hsplugin.monitor``::

    hsplugin:
      monitor:
        enabled: True           # False keeps it out, HSPLUGIN_MONITOR notwithstanding
        every_n_steps: 50       # any argument of GeometryMonitor but extract

On the command line of an unchanged config: ``+hsplugin.monitor.every_n_steps=50``.
"""

from __future__ import annotations

import inspect
import os
import sys
import warnings
from typing import Any

from lightning.pytorch import Callback

from hsplugin.checks import unknown

VARIABLE = "HSPLUGIN_MONITOR"
_OFF = ("", "0", "false", "no", "off")


def callbacks() -> list[Callback]:
    """Return what joins a new Trainer: nothing, unless asked or training solo-learn's methods."""
    asked = os.environ.get(VARIABLE, "").strip().lower() not in _OFF
    return [OptInMonitor(asked)] if asked or "solo.methods" in sys.modules else []


class OptInMonitor(Callback):
    """Gives its place to a GeometryMonitor once the module's config, or the user, asks for one.

    Args:
        asked: Whether the environment asks for the monitor, where the config says nothing.
    """

    def __init__(self, asked: bool) -> None:
        self.asked = asked

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Read the config and change places; a mistake in it becomes a warning."""
        try:
            options = monitor_options(getattr(pl_module, "cfg", None), self.asked)
            if options is None:
                return
            from hsplugin_solo.geometry_monitor import GeometryMonitor

            if any(isinstance(callback, GeometryMonitor) for callback in trainer.callbacks):
                return
            monitor = GeometryMonitor(**options)
        except Exception as error:
            warnings.warn(f"geometry monitor: not started: {error}", stacklevel=2)
            return
        # In place: Lightning is walking along this very list.
        trainer.callbacks[trainer.callbacks.index(self)] = monitor
        monitor.setup(trainer, pl_module, stage)


def monitor_options(cfg: Any, asked: bool) -> dict[str, Any] | None:
    """Return the monitor's arguments as the config has them, or None if none is wanted.

    Args:
        cfg: The config of a run: an OmegaConf config, or anything else, which says nothing.
        asked: Whether one is wanted where the config says nothing.

    Raises:
        TypeError: If the section is no mapping.
        ValueError: If it has a key that the monitor does not know.
    """
    from omegaconf import DictConfig, OmegaConf

    section = OmegaConf.select(cfg, "hsplugin.monitor") if isinstance(cfg, DictConfig) else None
    if section is None:
        return {} if asked else None
    if not isinstance(section, DictConfig):
        raise TypeError(
            f"hsplugin.monitor must be a mapping such as {{enabled: True}}, got {section!r}"
        )
    options: Any = OmegaConf.to_container(section, resolve=True)
    if not options.pop("enabled", True):
        return None
    from hsplugin.monitor import GeometryMonitorMixin

    known = inspect.signature(GeometryMonitorMixin).parameters.keys() - {"extract"}
    for name in options:
        if name not in known:
            raise ValueError(unknown("key of hsplugin.monitor", name, {*known, "enabled"}))
    return dict(options)
