"""Squared Frobenius norm of the features over the largest squared singular value."""

from __future__ import annotations

import torch
from torch import Tensor

from hsplugin.metrics.moments import MomentMetric, Spectra


def stable_rank(features: Tensor) -> Tensor:
    r"""Stable rank of the uncentred feature matrix, :math:`\|X\|_F^2 / \|X\|_2^2`.

    The sum of the squared singular values over the largest. From 1 to min(N, d), or 0 if all
    features are zero; more is better. A mean that is large beside the spread leaves it near 1.

    Source: Rudelson & Vershynin, "Sampling from large matrices", Journal of the ACM 2007, who call
    it the numerical rank.

    Args:
        features: Features, shape (N, d), N >= 2.

    Returns:
        A float64 scalar.

    Raises:
        TypeError: If features is no floating-point tensor.
        ValueError: If the shape is wrong or a value is NaN or infinite.

    Example:
        >>> round(stable_rank(torch.eye(4)).item(), 6)
        4.0
    """
    return StableRank().of(features)


class StableRank(MomentMetric):
    r"""Stable rank of the uncentred features, :math:`\|X\|_F^2 / \|X\|_2^2`; more is better.

    See :func:`hsplugin.metrics.functional.stable_rank`. Takes the features as they are.

    Example:
        >>> metric = StableRank()
        >>> metric.update(torch.eye(4)[:2])
        >>> metric.update(torch.eye(4)[2:])
        >>> round(metric.compute().item(), 6)
        4.0
    """

    name = "stable_rank"
    title = "stable rank"
    single_eigenvalues = True
    higher_is_better = True

    def bounds(self, rows: int, dim: int) -> tuple[float, float]:
        """From 0 to min(N, d)."""
        return 0.0, float(min(rows, dim))

    def _value(self, shared: Spectra) -> Tensor:
        squares = shared.singular_values.square()
        return torch.div(squares.sum(), torch.where(squares[0] > 0, squares[0], 1.0))
