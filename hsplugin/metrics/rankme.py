"""Smooth rank of the features."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hsplugin.checks import check_positive
from hsplugin.metrics.moments import RankMetric, Spectra, entropy_rank, largest_entropy_rank
from hsplugin.metrics.packing import in_range


def rankme(features: Tensor, epsilon: float = 1e-7) -> Tensor:
    r"""Smooth rank of the uncentred feature matrix.

    .. math::
        \exp\Bigl(-\sum_k p_k \log p_k\Bigr), \qquad
        p_k = \frac{\sigma_k}{\|\sigma\|_1} + \epsilon

    over its min(N, d) singular values. From about 1 (collapse) to min(N, d); more is better.

    Source: Garrido et al., ICML 2023, https://arxiv.org/abs/2210.02885. Some public code (reptrix)
    takes the eigenvalues of the covariance instead; that is the effective rank.

    Args:
        features: Features, shape (N, d), N >= 2.
        epsilon: Added to each p, as in the paper.

    Returns:
        A float64 scalar.

    Raises:
        TypeError: If features is no floating-point tensor.
        ValueError: If the shape is wrong, epsilon <= 0, or a value is NaN or infinite.

    Example:
        >>> round(rankme(torch.eye(4)).item(), 3)
        4.0
    """
    return RankMe(epsilon).of(features)


class RankMe(RankMetric):
    r"""Smooth rank of the uncentred features, :math:`\exp(-\sum p \log p)`; more is better.

    See :func:`hsplugin.metrics.functional.rankme`. Takes the features as they are, as the paper
    does. The singular values come from the eigenvalues of X^T X in float64, so those below 1e-8 of
    the largest are rounding noise of about that size, which is less than the paper's epsilon.
    :meth:`GeometryMetric.of` decomposes X itself and agrees to about 1e-5 relative even where the
    rank is deficient.

    Args:
        epsilon: Added to each p, above 0.
        kwargs: Of :class:`torchmetrics.Metric`.

    Raises:
        TypeError: If epsilon is no number.
        ValueError: If epsilon <= 0.

    Example:
        >>> metric = RankMe()
        >>> metric.update(torch.eye(4))
        >>> round(metric.compute().item(), 3)
        4.0
    """

    name = "rankme"
    title = "RankMe"
    power = 1.0

    def __init__(self, epsilon: float = 1e-7, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.epsilon = check_positive("epsilon", epsilon)

    def bounds(self, rows: int, dim: int) -> tuple[float, float]:
        """From 0 to that of min(N, d) equal singular values, which epsilon lifts a little."""
        most = min(rows, dim)
        return 0.0, largest_entropy_rank(most, most, self.epsilon)

    def _value(self, shared: Spectra) -> Tensor:
        return entropy_rank(shared.singular_values, self.epsilon)

    def _evaluate(self, features: Tensor) -> Tensor:
        return entropy_rank(torch.linalg.svdvals(in_range(features)[0]), self.epsilon)
