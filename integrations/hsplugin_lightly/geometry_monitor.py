"""The geometry monitor as a callback of pytorch_lightning, on which Lightly's recipes train."""

from __future__ import annotations

try:
    from pytorch_lightning import Callback
except ImportError as error:
    raise ImportError(
        "hsplugin_lightly.GeometryMonitor needs pytorch-lightning; "
        "install it with: pip install 'hsplugin[lightly]'"
    ) from error

from hsplugin.monitor import GeometryMonitorMixin

__all__ = ["GeometryMonitor"]


class GeometryMonitor(GeometryMonitorMixin, Callback):  # type: ignore[misc]
    """Watches the geometry of a ``pytorch_lightning`` module; never changes training.

    Arguments and logged names are documented in
    :class:`hsplugin.monitor.GeometryMonitorMixin`.

    Example:
        >>> monitor = GeometryMonitor(every_n_steps=50)
        >>> # pytorch_lightning.Trainer(callbacks=[monitor, EarlyStopping("geometry/uniformity")])
    """
