"""Geometry of a representation, as metrics of torchmetrics.

Each class has a function of the same name in :mod:`hsplugin.metrics.functional`. The classes
stream: what can be had from running moments keeps O(d^2) numbers and no features, and
:class:`Uniformity` keeps at most ``max_samples`` rows. They are right under torchmetrics'
synchronisation over ranks (sizes may differ, a rank may have seen nothing), leave the global
random state alone, and read no value back to the host before ``compute``: what only the values
can tell, such as NaN features, is refused there.

Sums are kept in float64, which Apple's GPUs lack: leave the metric on the CPU and move features
there. As with any metric of torchmetrics, a state saved by one rank and loaded by all counts once
for each of them.
"""

from hsplugin.metrics.alignment import Alignment
from hsplugin.metrics.lidar import LiDAR
from hsplugin.metrics.moments import (
    AlphaReQ,
    EffectiveRank,
    NESum,
    RankMe,
    WassersteinUniformity,
)
from hsplugin.metrics.tolerance import Tolerance
from hsplugin.metrics.uniformity import Uniformity, UniformityReport

__all__ = [
    "Alignment",
    "AlphaReQ",
    "EffectiveRank",
    "LiDAR",
    "NESum",
    "RankMe",
    "Tolerance",
    "Uniformity",
    "UniformityReport",
    "WassersteinUniformity",
]
