"""The geometry monitor for scripts that build their own Trainer: opt in, off by default.

Lightning calls :func:`callbacks` for every Trainer in this environment (entry-point group
``lightning.pytorch.callbacks_factory``). The monitor is added if ``HSPLUGIN_MONITOR=1`` is set, or
if the module has a config, as solo-learn's methods do, with a section ``hsplugin.monitor``::

    hsplugin:
      monitor:
        enabled: True           # False overrides HSPLUGIN_MONITOR
        every_n_steps: 50       # any argument of GeometryMonitor except extract

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
    """Return callbacks for a new Trainer: none unless asked, or solo-learn is loaded."""
    asked = os.environ.get(VARIABLE, "").strip().lower() not in _OFF
    return [OptInMonitor(asked)] if asked or "solo.methods" in sys.modules else []


class OptInMonitor(Callback):
    """Replaces itself by a GeometryMonitor once the module's config, or the user, asks for one.

    Args:
        asked: Whether the environment asks for the monitor; the config takes precedence.
    """

    def __init__(self, asked: bool) -> None:
        self.asked = asked

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Read the config and replace this callback; a mistake in it becomes a warning."""
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
        # In place: Lightning is iterating over this list.
        trainer.callbacks[trainer.callbacks.index(self)] = monitor
        monitor.setup(trainer, pl_module, stage)


def monitor_options(cfg: Any, asked: bool) -> dict[str, Any] | None:
    """Return the monitor's arguments from the config, or None if it is off.

    Args:
        cfg: The config of a run; anything but an OmegaConf config is ignored.
        asked: Whether it is on if the config does not mention it.

    Raises:
        TypeError: If the section is no mapping.
        ValueError: If it has an unknown key.
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
