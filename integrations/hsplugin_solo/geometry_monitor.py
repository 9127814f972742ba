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
    __doc__ = GeometryMonitorMixin.__doc__
