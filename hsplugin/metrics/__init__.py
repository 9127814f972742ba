"""Geometry of a representation, as metrics of torchmetrics.

Each metric has a file with its function, its class and what the class declares of itself; this
table lists them, and the monitor, ``hsplugin measure`` and sweeps follow it. The functions are in
:mod:`hsplugin.metrics.functional`.

The classes stream: metrics of moments keep O(d^2) numbers and no features, :class:`Uniformity` and
others that compare rows keep at most ``max_samples`` of them. They support torchmetrics'
synchronisation over ranks (sizes may differ, a rank may have seen nothing), do not touch the global
random state, and read no value back to the host before ``compute``, where NaN and infinite features
are refused.

Sums are kept in float64. For a device that may lack it, such as Apple's GPUs, they stay on the CPU,
and features are moved there. As with any metric of torchmetrics, a state saved by one rank and
loaded by all counts once for each of them.
"""

from hsplugin.metrics import functional
from hsplugin.metrics.alignment import Alignment
from hsplugin.metrics.alpha_req import AlphaReQ
from hsplugin.metrics.base import GeometryMetric
from hsplugin.metrics.cluster_learnability import ClusterLearnability
from hsplugin.metrics.condition_number import ConditionNumber
from hsplugin.metrics.effective_rank import EffectiveRank
from hsplugin.metrics.feature_std import FeatureStd
from hsplugin.metrics.intrinsic_dimension import IntrinsicDimension
from hsplugin.metrics.knn import KNNAccuracy
from hsplugin.metrics.lidar import LiDAR
from hsplugin.metrics.linear_cka import LinearCKA
from hsplugin.metrics.nesum import NESum
from hsplugin.metrics.per_class_rank import PerClassRank
from hsplugin.metrics.rankme import RankMe
from hsplugin.metrics.stable_rank import StableRank
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
        StableRank,
        ConditionNumber,
        FeatureStd,
        LiDAR,
        IntrinsicDimension,
        ClusterLearnability,
        Tolerance,
        PerClassRank,
        KNNAccuracy,
    )
}
"""Every metric of one representation by its name, in the order of reports."""

OF_TWO_ENCODERS: dict[str, type[GeometryMetric]] = {LinearCKA.name: LinearCKA}
"""Those that compare two representations of the same samples, which no report has both of."""

__all__ = [
    "METRICS",
    "OF_TWO_ENCODERS",
    "Alignment",
    "AlphaReQ",
    "ClusterLearnability",
    "ConditionNumber",
    "EffectiveRank",
    "FeatureStd",
    "GeometryMetric",
    "IntrinsicDimension",
    "KNNAccuracy",
    "LiDAR",
    "LinearCKA",
    "NESum",
    "PerClassRank",
    "RankMe",
    "StableRank",
    "Tolerance",
    "Uniformity",
    "UniformityReport",
    "WassersteinUniformity",
    "functional",
]
