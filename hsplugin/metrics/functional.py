"""The metrics as functions of features that are all there.

Each function, such as ``rankme``, is defined in the file of its metric and computes as the class
does, with the same checks. As the losses, none normalises: those defined on the unit sphere
(alignment, uniformity, Wasserstein uniformity, tolerance, intrinsic dimension) expect unit rows,
which :func:`hsplugin.metrics.directions.directions` makes and the classes of
:mod:`hsplugin.metrics` make by default.

Example:
    >>> import torch
    >>> from hsplugin.metrics import functional
    >>> round(functional.rankme(torch.eye(4)).item(), 3)
    4.0
"""

from hsplugin.metrics.alignment import alignment
from hsplugin.metrics.alpha_req import alpha_req
from hsplugin.metrics.cluster_learnability import cluster_learnability
from hsplugin.metrics.condition_number import condition_number
from hsplugin.metrics.effective_rank import effective_rank
from hsplugin.metrics.feature_std import feature_std
from hsplugin.metrics.intrinsic_dimension import intrinsic_dimension
from hsplugin.metrics.knn import knn
from hsplugin.metrics.lidar import lidar
from hsplugin.metrics.linear_cka import linear_cka
from hsplugin.metrics.nesum import nesum
from hsplugin.metrics.per_class_rank import per_class_rank
from hsplugin.metrics.rankme import rankme
from hsplugin.metrics.stable_rank import stable_rank
from hsplugin.metrics.tolerance import tolerance
from hsplugin.metrics.uniformity import uniformity
from hsplugin.metrics.wasserstein_uniformity import wasserstein_uniformity

__all__ = [
    "alignment",
    "alpha_req",
    "cluster_learnability",
    "condition_number",
    "effective_rank",
    "feature_std",
    "intrinsic_dimension",
    "knn",
    "lidar",
    "linear_cka",
    "nesum",
    "per_class_rank",
    "rankme",
    "stable_rank",
    "tolerance",
    "uniformity",
    "wasserstein_uniformity",
]
