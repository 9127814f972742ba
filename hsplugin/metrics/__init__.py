"""Geometry of a representation, as metrics of torchmetrics.

Each metric has a file with its function, its class and what the class declares of itself; this
table lists them, and the monitor, ``hsplugin measure``, sweeps and the functions in
:mod:`hsplugin.metrics.functional` follow it.

The classes stream: metrics of moments keep O(d^2) numbers and no features, :class:`Uniformity`
keeps at most ``max_samples`` rows. They support torchmetrics' synchronisation over ranks (sizes may
differ, a rank may have seen nothing), do not touch the global random state, and read no value back
to the host before ``compute``, where NaN and infinite features are refused.

Sums are kept in float64. For a device that may lack it, such as Apple's GPUs, they stay on the CPU,
and features are moved there. As with any metric of torchmetrics, a state saved by one rank and
loaded by all counts once for each of them.
"""

from hsplugin.metrics.alignment import Alignment
from hsplugin.metrics.alpha_req import AlphaReQ
from hsplugin.metrics.base import GeometryMetric
from hsplugin.metrics.effective_rank import EffectiveRank
from hsplugin.metrics.lidar import LiDAR
from hsplugin.metrics.nesum import NESum
from hsplugin.metrics.rankme import RankMe
from hsplugin.metrics.tolerance import Tolerance
from hsplugin.metrics.uniformity import Uniformity, UniformityReport
from hsplugin.metrics.wasserstein_uniformity import WassersteinUniformity

METRICS: dict[str, type[GeometryMetric]] = {
    metric.name: metric
    for metric in (
        Alignment,
        Uniformity,
        WassersteinUniformity,
        RankMe,
        EffectiveRank,
        AlphaReQ,
        NESum,
        LiDAR,
        Tolerance,
    )
}
"""Every metric by its name, in the order of reports."""

__all__ = [
    "METRICS",
    "Alignment",
    "AlphaReQ",
    "EffectiveRank",
    "GeometryMetric",
    "LiDAR",
    "NESum",
    "RankMe",
    "Tolerance",
    "Uniformity",
    "UniformityReport",
    "WassersteinUniformity",
]
