"""Effective rank of the covariance."""

from __future__ import annotations

from torch import Tensor

from hsplugin.metrics.moments import RankMetric, Spectra, entropy_rank


def effective_rank(features: Tensor) -> Tensor:
    r"""Effective rank of the covariance, :math:`\exp(-\sum_k p_k \log p_k)`.

    with :math:`p_k = \lambda_k / \sum_j \lambda_j` over its eigenvalues. From 1 to d, or 0 if there
    is no variance at all; more is better. It differs from RankMe in that the mean is taken out and
    directions count by variance, not by its root.

    Source: Roy & Vetterli, "The effective rank", EUSIPCO 2007, applied to the covariance matrix.

    Args:
        features: Features, shape (N, d), N >= 2.

    Returns:
        A float64 scalar.

    Raises:
        TypeError: If features is no floating-point tensor.
        ValueError: If the shape is wrong or a value is NaN or infinite.

    Example:
        >>> import torch
        >>> round(effective_rank(torch.cat([torch.eye(3), -torch.eye(3)])).item(), 6)
        3.0
    """
    return EffectiveRank().of(features)


class EffectiveRank(RankMetric):
    r"""Effective rank of the covariance, :math:`\exp(-\sum p \log p)`; more is better.

    See :func:`hsplugin.metrics.functional.effective_rank`. Takes the features as they are.

    Example:
        >>> import torch
        >>> metric = EffectiveRank()
        >>> metric.update(torch.eye(3))
        >>> metric.update(-torch.eye(3))
        >>> round(metric.compute().item(), 6)
        3.0
    """

    name = "effective_rank"
    title = "effective rank"
    power = 2.0

    def _value(self, shared: Spectra) -> Tensor:
        return entropy_rank(shared.covariance_spectrum)
