"""Mean distance of positive pairs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hsplugin.checks import check_positive
from hsplugin.functional import pair_distances, unit_rows
from hsplugin.metrics.base import GeometryMetric


class Alignment(GeometryMetric):
    r"""Alignment of positive pairs, :math:`E\, \|f(x) - f(y)\|_2^\alpha`; less is better.

    Streams with a sum and a count. See :func:`hsplugin.metrics.functional.alignment`.

    Args:
        alpha: The exponent, above 0.
        normalize: Whether to scale features to unit length first.
        kwargs: Of :class:`torchmetrics.Metric`.

    Raises:
        TypeError: If alpha is no number.
        ValueError: If alpha <= 0.

    Example:
        >>> metric = Alignment()
        >>> metric.update(torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 1.0]]))
        >>> metric.compute().item()
        2.0
    """

    higher_is_better = False
    distance_sum: Tensor

    _argument = "x or y"
    _fewest_rows = 1

    def __init__(self, alpha: float = 2.0, *, normalize: bool = True, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.alpha = check_positive("alpha", alpha)
        self.normalize = normalize
        self._set_apart(self.alpha, normalize)
        zero = torch.zeros((), dtype=torch.float64)
        self.add_state("distance_sum", zero, dist_reduce_fx="sum")

    def update(self, x: Tensor, y: Tensor) -> None:
        """Add the positive pairs of two views.

        Args:
            x: Features of one view, shape (N, d).
            y: Features of the other view, same shape, dtype and device.

        Raises:
            TypeError: If a view is no floating-point tensor, or their dtypes differ.
            ValueError: If their shapes or devices differ.
        """
        x, y = x.detach(), y.detach()
        if self.normalize and x.dim() == y.dim() == 2:
            pairs = pair_distances(unit_rows(x), unit_rows(y), self.alpha)
        else:
            pairs = pair_distances(x, y, self.alpha)
        self._count(torch.cat([x, y], dim=1))
        self.distance_sum = self.distance_sum + pairs.sum(dtype=torch.float64)

    def compute(self) -> Tensor:
        """Return the mean distance of all pairs seen.

        Raises:
            ValueError: If there are none, or features were NaN or infinite.
        """
        self._check_seen()
        return self.distance_sum / self.rows
