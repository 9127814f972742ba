"""Mean distance of positive pairs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hsplugin.checks import check_pair, check_positive, computing_dtype
from hsplugin.functional import pair_distances
from hsplugin.metrics.base import GeometryMetric, States
from hsplugin.metrics.directions import directions


def alignment(x: Tensor, y: Tensor, alpha: float = 2.0) -> Tensor:
    r"""Mean distance of positive pairs, :math:`\frac1N \sum_i \|x_i - y_i\|_2^\alpha`.

    Source: Wang & Isola, ICML 2020, https://arxiv.org/abs/2005.10242. On unit rows it lies in
    [0, 2^alpha]; less is better, and a collapsed representation has zero too.

    Args:
        x: Unit features of one view, shape (N, d), N >= 1.
        y: Unit features of the other view, same shape.
        alpha: The exponent, above 0.

    Returns:
        A scalar, float64 for float64 features and float32 for all others.

    Raises:
        TypeError: If x or y is no floating-point tensor, or their dtypes differ.
        ValueError: If shapes differ or are wrong, alpha <= 0, or a value is NaN or infinite.

    Example:
        >>> alignment(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]]))
        tensor(2.)
    """
    return Alignment(alpha, normalize=False).of(x, y).to(computing_dtype(x.dtype))


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

    name = "alignment"
    title = "alignment"
    takes = ("x", "y")
    settings = ("alpha", "normalize")
    each_step = True
    note = "0 is best, and the value of a collapse"
    least_rows = 1
    higher_is_better = False
    distance_sum: Tensor

    _arguments = ("x", "y")

    def __init__(self, alpha: float = 2.0, *, normalize: bool = True, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.alpha = check_positive("alpha", alpha)
        self.normalize = normalize
        self._forbid_merging(self.alpha, normalize)
        zero = torch.zeros((), dtype=torch.float64)
        self.add_state("distance_sum", zero, dist_reduce_fx="sum")

    def update(self, x: Tensor, y: Tensor) -> None:
        """Add the positive pairs of two views.

        Args:
            x: Features of one view, shape (N, d), N >= 1.
            y: Features of the other view, same shape, dtype and device.

        Raises:
            TypeError: If a view is no floating-point tensor, or their dtypes differ.
            ValueError: If they are empty, or their shapes or devices differ.
        """
        self._add(x, y)

    def bounds(self, rows: int, dim: int) -> tuple[float, float]:
        """From 0 to 2^alpha on the sphere."""
        return 0.0, 2.0**self.alpha if self.normalize else float("inf")

    def _check(self, x: Tensor, y: Tensor, *, min_rows: int = 1) -> None:
        check_pair("x", x, "y", y, min_rows=min_rows)

    def _measure(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        count = self._count(torch.cat([x, y], dim=1))
        if self.normalize:
            x, y = directions(x), directions(y)
        pairs = pair_distances(x, y, self.alpha)
        return {"distance_sum": pairs.sum(dtype=torch.float64), **count}

    def _value(self, shared: States) -> Tensor:
        return shared["distance_sum"] / shared["rows"]
