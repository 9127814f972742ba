"""Mean standard deviation of the dimensions of unit features."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hsplugin.checks import check_features
from hsplugin.functional import power_of_length
from hsplugin.metrics.base import States
from hsplugin.metrics.directions import directions
from hsplugin.metrics.inputs import TakesFeatures


def feature_std(features: Tensor) -> Tensor:
    r"""Standard deviation of each dimension of the normalised features, averaged over dimensions.

    .. math::
        \frac1d \sum_k \sqrt{\frac{1}{N - 1} \sum_i (u_{ik} - \bar u_k)^2}, \qquad
        u_i = x_i / \|x_i\|_2

    From 0 (collapse) to about :math:`1 / \sqrt d`, which features spread in all directions alike
    have; more is better.

    Source: Chen & He, "Exploring simple Siamese representation learning", CVPR 2021,
    https://arxiv.org/abs/2011.10566, as Lightly's ``std_of_l2_normalized`` has it.

    Args:
        features: Features of any length, shape (N, d), N >= 2.

    Returns:
        A float64 scalar.

    Raises:
        TypeError: If features is no floating-point tensor.
        ValueError: If the shape is wrong or a value is NaN or infinite.

    Example:
        >>> round(feature_std(torch.tensor([[2.0, 0.0], [0.0, 1.0]])).item(), 6)
        0.707107
    """
    return FeatureStd().of(features)


class FeatureStd(TakesFeatures):
    r"""Mean standard deviation of the dimensions of unit features; more is better.

    Streams with two sums a dimension. See :func:`hsplugin.metrics.functional.feature_std`.

    Example:
        >>> metric = FeatureStd()
        >>> metric.update(torch.tensor([[2.0, 0.0]]))
        >>> metric.update(torch.tensor([[0.0, 1.0]]))
        >>> round(metric.compute().item(), 6)
        0.707107
    """

    name = "feature_std"
    title = "standard deviation of unit features"
    higher_is_better = True
    sums: Tensor
    squares: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        zeros = torch.zeros(0, dtype=torch.float64)
        self.add_state("sums", zeros, dist_reduce_fx="sum")
        self.add_state("squares", zeros, dist_reduce_fx="sum")

    def bounds(self, rows: int, dim: int) -> tuple[float, float]:
        """From 0 to that of a variance of 1 / d in each dimension."""
        return 0.0, (rows / (rows - 1) / dim) ** 0.5

    def describe(self, rows: int, dim: int) -> str:
        """What features spread in all directions alike have."""
        return f"{dim**-0.5:.4f} is best, 0 is a collapse"

    def _check(self, features: Tensor, *, min_rows: int = 1) -> None:
        check_features("features", features, min_rows=min_rows)

    def _measure(self, features: Tensor) -> dict[str, Tensor]:
        x = directions(features).to(torch.float64)
        return {
            "sums": x.sum(dim=0),
            "squares": x.square().sum(dim=0),
            **self._count(features),
        }

    def _dim(self, states: States) -> int:
        return len(states["sums"])

    def _value(self, shared: States) -> Tensor:
        rows, squares = shared["rows"].to(torch.float64), shared["squares"]
        scatter = squares - shared["sums"].square() / rows
        # What is left of equal features is rounding.
        rounding = 4 * torch.finfo(torch.float64).eps * squares
        scatter = torch.where(scatter > rounding, scatter, 0.0)
        return power_of_length(scatter / (rows - 1), 1.0).mean()
