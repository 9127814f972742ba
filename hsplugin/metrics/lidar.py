"""Linear discriminant analysis rank over the views of each instance."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hsplugin.checks import check_positive
from hsplugin.metrics import spectrum
from hsplugin.metrics.base import GeometryMetric
from hsplugin.metrics.checks import check_views
from hsplugin.metrics.moments import add_moments
from hsplugin.metrics.spectrum import Moments, instance_moments, merge_moments


class LiDAR(GeometryMetric):
    r"""Rank of :math:`\Sigma_w^{-1/2} \Sigma_b \Sigma_w^{-1/2}`; more is better.

    Streams with the moments of the instances' means and the sum of the covariances within them.
    See :func:`hsplugin.metrics.functional.lidar`. Takes the features as they are, as the paper.

    Args:
        delta: Added to the diagonal of Sigma_w, above 0.
        epsilon: Added to each p, above 0.
        kwargs: Of :class:`torchmetrics.Metric`.

    Raises:
        TypeError: If delta or epsilon is no number.
        ValueError: If delta or epsilon <= 0.

    Example:
        >>> metric = LiDAR()
        >>> metric.update(torch.eye(4)[:, None].repeat(1, 2, 1))
        >>> round(metric.compute().item(), 3)
        3.0
    """

    higher_is_better = True
    moments: Tensor
    within: Tensor

    _argument = "views"

    def __init__(self, delta: float = 1e-4, epsilon: float = 1e-7, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.delta = check_positive("delta", delta)
        self.epsilon = check_positive("epsilon", epsilon)
        zero = torch.zeros(1, 1, dtype=torch.float64)
        self.add_state("moments", zero, dist_reduce_fx=merge_moments)
        self.add_state("within", zero, dist_reduce_fx="sum")

    def update(self, views: Tensor) -> None:
        """Add instances, each with all its views.

        Args:
            views: Shape (N, q, d) with q >= 2, such as ``torch.stack([z_a, z_b], dim=1)``.

        Raises:
            TypeError: If views is no floating-point tensor.
            ValueError: If its shape is wrong or d differs from that of earlier calls.
        """
        check_views(views)
        views = views.detach()
        means, within = instance_moments(views)
        self.moments = add_moments(self.moments, means)
        self.within = self.within + within
        self._count(views)

    def compute(self) -> Tensor:
        """Return the metric of all instances seen.

        Raises:
            ValueError: If fewer than two were seen, or features were NaN or infinite.
        """
        self._check_seen()
        moments = Moments.unpack(self.moments)
        return spectrum.lidar(moments, self.within, self.delta, self.epsilon)
