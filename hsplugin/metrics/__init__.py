"""Geometry of a representation, as metrics of torchmetrics.

Each metric has a file with its function, its class and what the class declares of itself; this
table lists them, and the monitor, ``hsplugin measure``, sweeps and the functions in
:mod:`hsplugin.metrics.functional` follow it.

The classes stream: what can be read off running moments keeps O(d^2) numbers and no features, and
:class:`Uniformity` keeps at most ``max_samples`` rows. They are right under torchmetrics'
synchronisation over ranks (sizes may differ, a rank may have seen nothing), leave the global
random state alone, and read no value back to the host before ``compute``: what only the values
can tell, such as NaN features, is refused there.

Sums are kept in float64, which Apple's GPUs lack: leave the metric on the CPU and move features
there. As with any metric of torchmetrics, a state saved by one rank and loaded by all counts once
for each of them.
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
