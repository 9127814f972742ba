"""The geometry monitor as a callback of lightning.pytorch, on which solo-learn trains."""

from __future__ import annotations

try:
    from lightning.pytorch import Callback
except ImportError as error:
    raise ImportError(
        "hsplugin_solo.GeometryMonitor needs lightning; "
        "install it with: pip install 'hsplugin[solo]'"
    ) from error

from hsplugin.monitor import GeometryMonitorMixin

__all__ = ["GeometryMonitor"]


class GeometryMonitor(GeometryMonitorMixin, Callback):  # type: ignore[misc]
    """Watches the geometry of a ``lightning.pytorch`` module; never changes training.

    Arguments and logged names are documented in
    :class:`hsplugin.monitor.GeometryMonitorMixin`.

    Example:
        >>> monitor = GeometryMonitor(every_n_steps=50)
        >>> # lightning.Trainer(callbacks=[monitor, EarlyStopping("geometry/uniformity")])
    """
