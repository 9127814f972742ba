"""GeometryMonitor: watches alignment, uniformity and rank of any method while it trains.

The mixin depends on no framework; :class:`hsplugin.GeometryMonitor` adds the Callback of each
Lightning namespace that is installed.
"""

from hsplugin.monitor.guard import GeometryWarning
from hsplugin.monitor.mixin import GeometryMonitorMixin

__all__ = ["GeometryMonitorMixin", "GeometryWarning"]
