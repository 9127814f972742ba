"""The geometry monitor as a callback of every Lightning namespace that is installed.

``lightning.pytorch`` and ``pytorch_lightning`` are two copies of one framework, and each Trainer
knows only its own Callback.
"""

from __future__ import annotations

import importlib

from hsplugin.monitor.mixin import GeometryMonitorMixin

__all__ = ["CALLBACKS", "GeometryMonitor"]


def _callbacks() -> tuple[type, ...]:
    """The Callback of each namespace; one that is installed but broken is left out.

    Raises:
        ImportError: If there is none.
    """
    found, reasons = [], []
    for namespace in ("lightning.pytorch", "pytorch_lightning"):
        try:
            found.append(importlib.import_module(namespace).Callback)
        except Exception as error:
            reasons.append(f"{namespace}: {error}")
    if not found:
        raise ImportError(
            "GeometryMonitor needs pytorch-lightning or lightning; install one with: "
            f"pip install 'hsplugin[lightly]' or 'hsplugin[solo]' ({'; '.join(reasons)})"
        )
    return tuple(found)


CALLBACKS = _callbacks()


class GeometryMonitor(GeometryMonitorMixin, *CALLBACKS):  # type: ignore[misc]
    """Watches the geometry of a module of either Lightning namespace; never changes training.

    Arguments and logged names are documented in
    :class:`hsplugin.monitor.GeometryMonitorMixin`.

    Example:
        >>> monitor = GeometryMonitor(every_n_steps=50)
        >>> # Trainer(callbacks=[monitor, EarlyStopping("geometry/uniformity")])
    """
